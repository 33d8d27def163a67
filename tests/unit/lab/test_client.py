"""The model of a running lab: from a run dir, a URL or containers; files, and responses of services and engines."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lab import LabError, containers
from lab.client import Lab, Missing, NotRunning
from lab.containers import Containers
from lab.features import Subject, span_of_the_roll
from lab.kubernetes.pods import Pods, Workload
from lab.supervise.rundir import RunDir
from tests.unit.lab.test_signals import export

STATE = {
    "stage": 3,
    "services": [
        {"name": "die-service", "url": "http://127.0.0.1:1"},
        {"name": "dice-roller", "url": "http://127.0.0.1:2"},
        {"name": "frontend", "url": "http://127.0.0.1:3"},
    ],
    "engines": [{"name": "tempo", "url": "http://127.0.0.1:4"}],
}
Serve = Callable[[web.Application], Awaitable[TestServer]]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run dir like that of a running lab whose process is this one."""
    directory = RunDir(tmp_path / "run")
    directory.claim()
    directory.write_state(STATE)
    return directory.path


def test_a_lab_is_found_by_run_dir(running: Path) -> None:
    lab = Lab.in_run_dir(running)
    assert (lab.front, lab.stage, lab.run_dir) == ("http://127.0.0.1:3", 3, running)
    assert lab.url("dice-roller") == "http://127.0.0.1:2"
    with pytest.raises(Missing, match="no nosuch in the lab"):
        lab.url("nosuch")
    assert lab.engine("tempo") == "http://127.0.0.1:4"
    with pytest.raises(NotRunning, match="loki is not running"):
        lab.engine("loki")


def test_without_a_frontend_the_roller_is_the_front(tmp_path: Path) -> None:
    lab = Lab.of_state(RunDir(tmp_path), {"stage": 1, "services": STATE["services"][1:2]})  # type: ignore[index]
    assert lab.front == "http://127.0.0.1:2"


def test_a_lab_is_found_by_url(running: Path, tmp_path: Path) -> None:
    assert Lab.find(running).front == "http://127.0.0.1:3"
    by_service = Lab.find(running, "http://127.0.0.1:2")
    assert (by_service.front, by_service.stage) == ("http://127.0.0.1:2", 3)
    for run_dir in (running, tmp_path / "empty"):
        elsewhere = Lab.find(run_dir, "http://127.0.0.1:9")
        assert (elsewhere.front, dict(elsewhere.services)) == ("http://127.0.0.1:9", {})
    with pytest.raises(LabError, match=r"nothing runs in .*by --url"):
        Lab.find(tmp_path / "empty")


def test_a_dead_lab_is_not_running(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    with pytest.raises(LabError, match="nothing runs in"):
        Lab.in_run_dir(tmp_path)


@pytest.mark.parametrize(
    ("names", "stage", "front"),
    [
        ({"dice-roller"}, 1, 8000),
        ({"dice-roller", "frontend"}, 2, 8002),
        ({"dice-roller", "frontend", "die-service"}, 3, 8002),
        ({"dice-roller", "frontend", "die-service", "postgres", "prometheus"}, 5, 8002),
    ],
)
def test_containers_have_the_ports_of_the_compose_file(tmp_path: Path, names: set[str], stage: int, front: int) -> None:
    lab = Lab.in_containers(tmp_path, Containers("docker", dict.fromkeys(names, "id")))
    assert (lab.stage, lab.front) == (stage, f"http://127.0.0.1:{front}")
    assert set(lab.services) == names - {"postgres", "prometheus"}
    assert lab.engines == ({"prometheus": "http://127.0.0.1:8010"} if "prometheus" in names else {})


@pytest.mark.parametrize("sampling", ["none", "tail"])
async def test_sampling_of_containers_is_read_from_the_arguments_of_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    script = tmp_path / "docker"
    script.write_text(
        f"""#!/bin/sh
case "$1" in
    ps) echo "a otel-collector"; echo "b dice-roller";;
    inspect) [ "$4" = a ] && printf -- '--config=/collector.yaml\\n--config=/etc/sampling/{sampling}.yaml';;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await containers.find()
    assert found.sampling == sampling
    assert Lab.in_containers(tmp_path, found).sampling == sampling.replace("none", "")


def test_a_cluster_with_samplers_samples(tmp_path: Path) -> None:
    for name, sampling in (("sampler-collector", "tail"), ("otel-collector", "")):
        pods = Pods({name: Workload("statefulset", name, "dicelab")})
        assert Lab.elsewhere(tmp_path, 6, {"": "http://127.0.0.1:8002"}, pods).sampling == sampling


def test_incomplete_and_broken_lines_are_skipped(tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    directory.make()
    (directory.logs / "frontend.jsonl").write_text(
        '{"message": "one"}\n{"mess{"message": "x"}\n{"message": "two"}\n{"m'
    )
    lab = Lab(directory, "")
    assert lab.log_lines("frontend") == ['{"message": "one"}', '{"mess{"message": "x"}', '{"message": "two"}']
    assert [line.message for line in lab.lines("frontend")] == ["one", "two"]
    assert lab.log_lines("nosuch") == []


def test_a_line_may_be_half_written_within_a_character(tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    directory.make()
    half = '{"message": "🎲"}\n{"message": "🎲'.encode()[:-2]
    (directory.logs / "frontend.jsonl").write_bytes(half)
    (directory.traces / "frontend.jsonl").write_bytes('{"resourceSpans": []}\n{"🎲'.encode()[:-2])
    lab = Lab(directory, "")
    assert [line.message for line in lab.lines("frontend")] == ["🎲"]
    assert lab.spans() == []


def test_spans_are_read_once_while_their_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDir(tmp_path)
    directory.make()
    file = directory.traces / "frontend.jsonl"
    file.write_text(json.dumps(export(name="first")) + "\n")
    list_directory = Path.glob

    def list_and_rotate(path: Path, pattern: str) -> Iterator[Path]:
        listed = list(list_directory(path, pattern))
        if len(listed) == 1:
            file.rename(directory.traces / "frontend.jsonl.1")
            file.write_text(json.dumps(export(name="second")) + "\n")
        return iter(listed)

    monkeypatch.setattr(Path, "glob", list_and_rotate)
    assert [span.name for span in Lab(directory, "").spans()] == ["first", "second"]


async def test_capabilities_are_read_from_openapi(aiohttp_server: Serve, tmp_path: Path) -> None:
    batch = {"get": {"parameters": [{"name": "die"}, {"name": "times", "schema": {"maximum": 100}}]}}
    document = {"info": {"title": "frontend"}, "paths": {"/roll": {"get": {}}, "/roll-async": batch}}

    async def openapi(request: web.Request) -> web.Response:
        return web.json_response(document)

    app = web.Application()
    app.router.add_get("/openapi.json", openapi)
    front = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    async with Lab(RunDir(tmp_path), front) as lab:
        found = await lab.fetch_capabilities()
        assert (found.title, found.max_times, found.sign_in) == ("frontend", 100, False)
        document["paths"] = {}
        with pytest.raises(LabError, match="neither a frontend nor a dice-roller"):
            await lab.fetch_capabilities()
    async with Lab(RunDir(tmp_path), "http://127.0.0.1:1") as lab:
        with pytest.raises(LabError, match="does not answer"):
            await lab.fetch_capabilities()


async def test_an_empty_query_result_is_reported_as_missing(aiohttp_server: Serve, tmp_path: Path) -> None:
    results: list[object] = []

    async def query(request: web.Request) -> web.Response:
        assert request.query["query"] == "up"
        return web.json_response({"data": {"result": results}})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    async with Lab(RunDir(tmp_path), "", engines={"prometheus": url}) as lab:
        with pytest.raises(Missing, match="no up at"):
            await lab.fetch_prometheus("up")
        results.append({"value": [0, "1"]})
        assert await lab.fetch_prometheus("up") == results
        with pytest.raises(NotRunning, match="alloy"):
            await lab.fetch_loki("up", "usage")


async def test_alerts_have_their_most_urgent_state(aiohttp_server: Serve, tmp_path: Path) -> None:
    rules = [
        {"name": "ServiceDown", "state": "inactive"},
        {"name": "ServiceDown", "state": "firing"},
        {"name": "NoTraffic", "state": "inactive"},
    ]

    async def respond(request: web.Request) -> web.Response:
        assert request.query["type"] == "alert"
        return web.json_response({"data": {"groups": [{"rules": rules[:1]}, {"rules": rules[1:]}]}})

    app = web.Application()
    app.router.add_get("/api/v1/rules", respond)
    url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    async with Lab(RunDir(tmp_path), "", engines={"prometheus": url}) as lab:
        assert await lab.fetch_alerts() == {"ServiceDown": "firing", "NoTraffic": "inactive"}


# --- a lab elsewhere ---


def test_a_lab_elsewhere_has_the_same_ports_as_a_local_one(tmp_path: Path) -> None:
    lab = Lab.elsewhere(tmp_path, 6, {"": "http://127.0.0.1:9002", "tempo": "http://tempo.example"})
    assert lab.front == "http://127.0.0.1:9002"
    assert lab.url("die-service") == "http://127.0.0.1:9001"
    assert lab.engine("prometheus") == "http://127.0.0.1:9010"
    assert lab.engine("postgres-exporter") == "http://127.0.0.1:9011"
    assert lab.engine("tempo") == "http://tempo.example"
    assert (lab.stage, lab.state["otlp_endpoint"]) == (6, "http://127.0.0.1:9017")
    first = Lab.elsewhere(tmp_path, 1, {"": "http://127.0.0.1:9000"})
    assert first.services == {"dice-roller": "http://127.0.0.1:9000"}
    assert not {"postgres-exporter", "exporter"} & first.engines.keys()


def test_parts_of_a_lab_elsewhere_may_be_unknown(tmp_path: Path) -> None:
    lab = Lab.elsewhere(tmp_path, 3, {"": "https://lab.example", "loki": "https://loki.example"})
    assert (lab.services, lab.engines) == ({"frontend": "https://lab.example"}, {"loki": "https://loki.example"})
    with pytest.raises(NotRunning, match="--url die-service=URL"):
        lab.url("die-service")
    assert Lab.elsewhere(tmp_path, 2, {"frontend": "https://lab.example"}).front == "https://lab.example"
    for addresses in ({"nosuch": "http://x"}, {"die-service": "http://x"}):
        with pytest.raises(LabError, match="stage 1 has no "):
            Lab.elsewhere(tmp_path, 1, {"": "http://127.0.0.1:9000", **addresses})
    with pytest.raises(LabError, match="the address of the frontend"):
        Lab.elsewhere(tmp_path, 2, {"dice-roller": "http://127.0.0.1:9000"})


async def test_lines_of_a_lab_elsewhere_come_from_loki(aiohttp_server: Serve, tmp_path: Path) -> None:
    texts = {
        "operations": '{"logger": "frontend", "trace_id": "a"}',
        "usage": '{"logger": "frontend", "trace_id": "a", "usage": true}',
    }

    async def query(request: web.Request) -> web.Response:
        text = texts[request.headers["X-Scope-OrgID"]]
        return web.json_response({"data": {"result": [{"values": [["1", text]]}]}})

    async def ready(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/loki/api/v1/query_range", query)
    app.router.add_get("/ready", ready)
    loki = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    addresses = {"": "http://127.0.0.1:9", "loki": loki, "otel-collector": "http://127.0.0.1:9"}
    async with Lab.elsewhere(tmp_path, 6, addresses) as lab:
        await lab.find_engines()
        assert lab.engines == {"loki": loki}
        assert lab.state["otlp_endpoint"] == ""
        assert await lab.fetch_texts("frontend") == list(texts.values())
        assert [line.fields.get("usage") for line in await lab.fetch_lines("frontend", trace_id="a")] == [None, True]
        assert len(await lab.fetch_lines("frontend", usage=True)) == 1
        with pytest.raises(NotRunning, match="tempo is not running"):
            await lab.fetch_trace("a" * 32)


async def test_a_lab_elsewhere_samples_if_its_collector_has_metrics_of_that(
    aiohttp_server: Serve, tmp_path: Path
) -> None:
    series: list[object] = []

    async def query(request: web.Request) -> web.Response:
        assert "otelcol_processor_tail_sampling_" in request.query["query"]
        return web.json_response({"data": {"result": series}})

    async def trace(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    app.router.add_get("/api/v2/traces/{id}", trace)
    url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    find = span_of_the_roll("dice-roller", "GET /roll")
    addresses = {"": "https://lab.example", "tempo": url, "prometheus": url}
    async with Lab.elsewhere(tmp_path, 3, addresses) as lab:
        with pytest.raises(Missing, match="no trace abc"):
            await find(Subject(lab, 3, roll="abc"))
        series.append({"value": [0, "1"]})
        with pytest.raises(NotRunning, match="a sample of such traces"):
            await find(Subject(lab, 3, roll="abc"))
        lab.engines = {"tempo": url}
        with pytest.raises(Missing, match="no trace abc"):
            await find(Subject(lab, 3, roll="abc"))


async def test_engines_elsewhere_are_probed_concurrently(aiohttp_server: Serve, tmp_path: Path) -> None:
    both = asyncio.Barrier(2)

    async def ready(request: web.Request) -> web.Response:
        await both.wait()  # if the engines were asked one after the other, none would respond
        return web.Response()

    app = web.Application()
    app.router.add_get("/ready", ready)
    url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    async with Lab.elsewhere(tmp_path, 4, {"": "http://127.0.0.1:1", "loki": url, "tempo": url}) as lab:
        await lab.find_engines()
        assert lab.engines == {"loki": url, "tempo": url}
