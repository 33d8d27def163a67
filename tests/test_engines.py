"""The engines beside the services: the real ones, with the configuration that is shipped."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from lab import engines, stages
from tests.labs import Lab, dicelab, free_base_port, get, wait_for

ENGINES = [engine.name for engine in engines.ENGINES]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests import labs

    lab = labs.start(tmp_path_factory.mktemp("engines") / "run", 6, "--engines", roll_delay=0)
    yield lab
    lab.stop()


def engine_url(lab: Lab, name: str) -> str:
    return next(str(entry["url"]) for entry in lab.state["engines"] if entry["name"] == name)


def query(lab: Lab, expression: str) -> list[dict[str, Any]]:
    url = f"{engine_url(lab, 'prometheus')}/api/v1/query?{urlencode({'query': expression})}"
    answer = get(url).json
    assert answer["status"] == "success"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def running(lab: Lab, name: str) -> bool:
    return any(entry["name"] == name for entry in lab.state["engines"])


def test_every_engine_that_is_on_path_runs(lab: Lab) -> None:
    on_path = {engine.name for engine in engines.ENGINES if engine.find()}
    if "tempo" not in on_path:
        on_path.discard("otel-collector")
    assert {entry["name"] for entry in lab.state["engines"]} == on_path
    assert {"prometheus", "postgres-exporter"} <= on_path
    output = lab.run_dir.with_name("run.out").read_text()
    for engine in engines.ENGINES:
        missing = engine.name not in on_path and (engine.name != "otel-collector" or "tempo" in on_path)
        assert (f"{engine.name} is not on PATH: {engine.without}" in output) is missing


def test_prometheus_scrapes_every_job(lab: Lab) -> None:
    jobs = {*lab.services, *(entry["name"] for entry in lab.state["engines"])}

    def all_up() -> bool:
        up = {row["metric"]["job"]: row["value"][1] for row in query(lab, "up")}
        return up == dict.fromkeys(jobs, "1")

    wait_for(all_up, timeout=40)
    for name in ("pg_stat_database_numbackends", "pg_stat_activity_count", "pg_database_size_bytes"):
        wait_for(partial(query, lab, name), say=name)
    (size,) = query(lab, 'pg_database_size_bytes{datname="dice"}')
    assert float(size["value"][1]) > 1_000_000


def test_what_prometheus_has_is_what_was_rolled(lab: Lab) -> None:
    for _ in range(20):
        assert get(f"{lab.front}/roll?die=fair").status == 200
    rolled = lab.value("dice-roller", "dice_rolls_total", die_type="fair")
    wait_for(lambda: query(lab, f'sum(dice_rolls_total{{job="dice-roller",die_type="fair"}}) == {rolled}'))


def test_exemplars_are_stored_and_lead_to_traces(lab: Lab) -> None:
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    now = time.time()
    arguments = urlencode({"query": "http_request_duration_seconds_bucket", "start": now - 60, "end": now + 60})

    def found() -> bool:
        answer = get(f"{engine_url(lab, 'prometheus')}/api/v1/query_exemplars?{arguments}").json
        return trace_id in {row["labels"]["trace_id"] for series in answer["data"] for row in series["exemplars"]}

    # The newest observation of a bucket is its exemplar, and this was the last request.
    wait_for(found, timeout=30)
    if not running(lab, "tempo"):
        lab.trace(trace_id, count=7)


@pytest.mark.skipif(not shutil.which("tempo"), reason="Tempo is not on PATH")
def test_a_roll_is_whole_in_tempo_and_in_the_service_graph(lab: Lab) -> None:
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    tempo = engine_url(lab, "tempo")
    expected = {
        *(("frontend", name) for name in ("HTTP GET", "button click", "GET")),
        *(("dice-roller", name) for name in ("GET /roll", "GET")),
        *(("die-service", name) for name in ("GET /dice", "SELECT")),
    }

    def whole() -> bool:
        answer = get(f"{tempo}/api/v2/traces/{trace_id}", headers={"Accept": "application/json"})
        if answer.status != 200:
            return False
        found = set()
        for resource in answer.json["trace"].get("resourceSpans", []):
            attributes = {entry["key"]: entry["value"] for entry in resource["resource"]["attributes"]}
            service = attributes["service.name"]["stringValue"]
            found |= {(service, span["name"]) for scope in resource["scopeSpans"] for span in scope["spans"]}
        return found == expected

    wait_for(whole, timeout=30)
    assert not any(path.stat().st_size for path in (lab.run_dir / "traces").iterdir())
    pairs = {("frontend", "dice-roller"), ("dice-roller", "die-service")}

    def graph() -> bool:
        rows = query(lab, "traces_service_graph_request_total")
        return pairs <= {(row["metric"]["client"], row["metric"]["server"]) for row in rows}

    wait_for(graph, timeout=60)


def test_shipped_configuration_is_what_prometheus_understands(lab: Lab) -> None:
    config = lab.run_dir / "engines" / "prometheus" / "config" / "prometheus.yml"
    assert config.read_bytes() == (engines.COMPOSE / "prometheus" / "prometheus.yml").read_bytes()
    checked = subprocess.run(["promtool", "check", "config", config], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_engines_stop_with_the_lab(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1, "--engines")
    assert not running(lab, "postgres-exporter")
    pids = [entry["pid"] for entry in lab.state["engines"]]
    assert pids
    assert lab.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_taken_engine_port_is_said(tmp_path: Path) -> None:
    base = free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + engines.FIRST_PORT))
        taken.listen()
        process = dicelab("up", "--engines", "--stage", "1", "--base-port", str(base), "--run-dir", tmp_path / "run")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {base + engines.FIRST_PORT}" in output.decode()
    assert "prometheus" in output.decode()


def test_without_any_engine_everything_still_runs(own_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = own_lab(2, "--engines", PATH=str(tmp_path))
    assert lab.state["engines"] == []
    assert get(f"{lab.front}/roll?die=fair").status == 200
    output = lab.run_dir.with_name("run0.out").read_text()
    assert "prometheus is not on PATH" in output
    assert "tempo is not on PATH" in output


def test_plan_depends_on_what_is_there(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()

    def planned(stage: int) -> engines.Plan:
        return engines.plan(stages.load(stage), 8000, tmp_path / "run", path=str(binaries))

    def add(name: str) -> None:
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)

    assert planned(6).otlp_endpoint() is None
    add("otelcol")
    assert planned(6).found == ()  # a collector with nothing behind it is of no use
    add("tempo")
    assert planned(6).otlp_endpoint() == "http://127.0.0.1:8017"
    assert planned(6).otlp_endpoint("grpc") == "http://127.0.0.1:8016"
    (binaries / "otelcol").unlink()
    assert planned(6).otlp_endpoint() == "http://127.0.0.1:8015"
    assert planned(6).otlp_endpoint("grpc") == "http://127.0.0.1:8014"
    add("prometheus-postgres-exporter")
    assert [engine.name for engine, _ in planned(4).found] == ["tempo"]
    assert [engine.name for engine, _ in planned(5).found] == ["tempo", "postgres-exporter"]
    assert [engine.name for engine in planned(5).missing] == ["prometheus", "otel-collector"]


def test_every_variable_of_a_configuration_is_given(tmp_path: Path) -> None:
    import re

    given = engines.plan(stages.load(6), 8000, tmp_path, path="").variables("postgresql:///x")
    files = [engines.COMPOSE / "tempo" / "tempo.yaml", engines.ROOT / "otel" / "collector.yaml"]
    for file in files:
        named = set(re.findall(r"\$\{(?:env:)?([A-Z_]+)\}", file.read_text()))
        assert named
        assert named <= given.keys(), file
    targets = json.dumps(given)
    assert "0.0.0.0" not in targets
