"""The engines beside the services: the real ones, with the shipped configuration."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

import pytest
import yaml

from lab.paths import ALLOY, COMPOSE, DASHBOARDS, GRAFANA, ROOT
from lab.schema.command import Seen, look
from lab.schema.judge import Judge
from lab.schema.registry import Registry
from lab.signals import parse_export
from lab.supervise import engines, stages
from lab.supervise.engines_plan import plan_engines
from lab.supervise.processes import STOP_TIMEOUT
from lab.supervise.rundir import RunDir
from tests.support.labs import Lab, clean_environ, dicelab, free_base_port, get, wait_for
from tests.support.queries import parse, queries

ENGINES = [engine.name for engine in engines.ENGINES]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.support import labs

    lab = labs.start(tmp_path_factory.mktemp("engines") / "run", 6, "--engines", roll_delay=0)
    yield lab
    lab.stop()


def engine_url(lab: Lab, name: str) -> str:
    return next(str(entry["url"]) for entry in lab.state["engines"] if entry["name"] == name)


def query(lab: Lab, expression: str) -> list[dict[str, Any]]:
    url = f"{engine_url(lab, 'prometheus')}/api/v1/query?{urlencode({'query': expression})}"
    response = get(url).json
    assert response["status"] == "success"
    result: list[dict[str, Any]] = response["data"]["result"]
    return result


def running(lab: Lab, name: str) -> bool:
    return any(entry["name"] == name for entry in lab.state["engines"])


def test_every_engine_on_path_runs(lab: Lab) -> None:
    on_path = {engine.name for engine in engines.ENGINES if engine.find()}
    on_path -= {name for name, other in engines.NEEDS.items() if other not in on_path}
    assert {entry["name"] for entry in lab.state["engines"]} == on_path
    assert {"prometheus", "postgres-exporter"} <= on_path
    output = lab.run_dir.with_name("run.out").read_text()
    for engine in engines.ENGINES:
        missing = engine.name not in on_path and engines.NEEDS.get(engine.name) not in set(ENGINES) - on_path
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


def test_prometheus_counts_match_the_rolls(lab: Lab) -> None:
    for _ in range(20):
        assert get(f"{lab.front}/roll?die=fair").status == 200
    rolled = lab.value("dice-roller", "dice_rolls_total", die_type="fair")
    wait_for(lambda: query(lab, f'sum(dice_rolls_total{{job="dice-roller",die_type="fair"}}) == {rolled}'))


def test_exemplars_are_stored_and_lead_to_traces(lab: Lab) -> None:
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    now = time.time()
    arguments = urlencode({"query": "http_request_duration_seconds_bucket", "start": now - 60, "end": now + 60})

    def found() -> bool:
        response = get(f"{engine_url(lab, 'prometheus')}/api/v1/query_exemplars?{arguments}").json
        return trace_id in {row["labels"]["trace_id"] for series in response["data"] for row in series["exemplars"]}

    # The newest observation of a bucket is its exemplar, and this was the last request.
    wait_for(found, timeout=30)
    if not running(lab, "tempo"):
        lab.trace(trace_id, count=7)


@pytest.mark.engines("tempo")
def test_a_roll_is_complete_in_tempo_and_in_the_service_graph(lab: Lab) -> None:
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    tempo = engine_url(lab, "tempo")
    expected = {
        *(("frontend", name) for name in ("HTTP GET", "button click", "GET")),
        *(("dice-roller", name) for name in ("GET /roll", "GET")),
        *(("die-service", name) for name in ("GET /dice", "SELECT")),
    }

    def whole() -> bool:
        response = get(f"{tempo}/api/v2/traces/{trace_id}", headers={"Accept": "application/json"})
        if response.status != 200:
            return False
        found = set()
        for resource in response.json["trace"].get("resourceSpans", []):
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


@pytest.mark.engines("tempo")
def test_spans_in_tempo_are_those_of_the_registry(lab: Lab) -> None:
    get(f"{lab.front}/roll-async?die=extreme&times=5")

    async def seen() -> Seen:
        async with lab:
            return await look(lab)

    names: set[str] = set()

    def judged() -> Judge | None:
        found = asyncio.run(seen())
        names.update(span.name for span in found.spans)
        judge = found.judge(Registry.read(), 6, [*lab.services])
        return judge if {"HTTP GET", "async roll batch", "SELECT"} <= names else None

    judge = wait_for(judged, timeout=30, say="spans in Tempo")
    assert [str(finding) for finding in judge.findings] == []


@pytest.mark.engines("tempo")
def test_a_batch_makes_no_series_for_each_of_its_rolls(lab: Lab) -> None:
    """Its spans `roll 1` to `roll 100` are internal; only server and client spans become span metrics."""
    calls = 'traces_spanmetrics_calls_total{service="dice-roller",span_name="GET /roll-async"}'

    def counted() -> float:
        return sum(float(row["value"][1]) for row in query(lab, calls))

    before = counted()
    trace_id = get(f"{lab.front}/roll-async?die=fair&times=100").trace_id
    wait_for(lambda: counted() > before, timeout=60, say="the batch in the span metrics")
    kinds = {row["metric"]["span_kind"] for row in query(lab, "count by (span_kind) (traces_spanmetrics_calls_total)")}
    assert kinds == {"SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"}
    (series,) = query(lab, 'count({__name__=~"traces_spanmetrics_.+"})')
    assert float(series["value"][1]) < 500
    # Their exemplars lead to the trace, by the name under which Grafana's data source looks for it.
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "dicelab.yml").read_text())
    (prometheus,) = [one for one in provisioned["datasources"] if one["type"] == "prometheus"]
    names = {one["name"] for one in prometheus["jsonData"]["exemplarTraceIdDestinations"]}
    now = time.time()
    arguments = urlencode({"query": "traces_spanmetrics_latency_bucket", "start": now - 120, "end": now + 60})
    response = get(f"{engine_url(lab, 'prometheus')}/api/v1/query_exemplars?{arguments}").json
    labels = [exemplar["labels"] for series in response["data"] for exemplar in series["exemplars"]]
    assert trace_id in {label[name] for label in labels for name in names & label.keys()}


@pytest.mark.engines("prometheus", "otel-collector", "tempo", "loki", "alloy")
def test_the_cost_of_a_roll_agrees_with_the_figures_of_the_engines(lab: Lab, tmp_path: Path) -> None:
    _let_arrive(lab)
    command = dicelab("cost", "--requests", "60", "--json", "--run-dir", lab.run_dir)
    output, _ = command.communicate(timeout=110)
    assert command.returncode == 0, output.decode()
    report = json.loads(output)
    assert report["traces"]["requested"] == report["traces"]["kept"] >= 60
    figures = {(one["what"], one["engine"]): one for one in report["agreement"]}
    assert {engine.partition(",")[0] for _, engine in figures} == {"Prometheus", "Loki", "Tempo"}
    # The exporter's probe rolls meanwhile: its lines and spans are only in the engines' figures.
    for key, low, high in (
        (("series of the services", "Prometheus, count()"), 99, 101),
        (("lines, all of the lab", "Loki, distributor"), 99, 105),
        (("bytes of lines", "Loki, distributor"), 95, 110),
        (("bytes of lines in chunks", "Loki, volume API"), 90, 115),  # a range of less than a chunk gave a third
        (("spans", "Tempo, distributor"), 100, 120),
        (("bytes of spans as OTLP", "Tempo, distributor"), 90, 130),
    ):
        assert low <= figures[key]["percent"] <= high, figures[key]
    ours = Counter(sample.name for service in lab.services for sample in lab.samples(service))
    own = {name: count for name, count in ours.items() if name.startswith(("dice_", "roll_", "async_", "streamlit_"))}
    analyzed = _analyzed_series(lab, tmp_path)
    assert len(own) > 10
    assert {name: analyzed.get(name) for name in own} == own


def _let_arrive(lab: Lab) -> None:
    """Wait until the spans and lines of earlier tests are in Tempo and Loki: each service sends its own in order."""
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    tempo = f"{engine_url(lab, 'tempo')}/api/v2/traces/{trace_id}"
    lines = f'{{service_name=~".+"}} |= "{trace_id}"'

    def arrived() -> bool:
        response = get(tempo, headers={"Accept": "application/json"})
        spans = parse_export(response.json.get("trace", {})) if response.status == 200 else []
        found = {span.service for span in spans if span.name in ("HTTP GET", "GET /roll", "GET /dice")}
        return found == {labels["service_name"] for labels, _ in in_loki(lab, "operations", lines)} == {*lab.services}

    wait_for(arrived, timeout=90, say="a roll in Tempo and Loki")


def _analyzed_series(lab: Lab, tmp_path: Path) -> dict[str, int]:
    """The series of each metric by ``promtool tsdb analyze``; a second Prometheus writes the block that it reads."""
    data = tmp_path / "data"
    shutil.copytree(lab.run_dir / "engines" / "prometheus" / "data", data, ignore=shutil.ignore_patterns("lock"))
    (tmp_path / "empty.yml").write_text("")
    address = f"127.0.0.1:{free_base_port()}"
    command = [
        *("prometheus", f"--config.file={tmp_path / 'empty.yml'}", f"--storage.tsdb.path={data}"),
        *(f"--web.listen-address={address}", "--web.enable-admin-api", "--log.level=error"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(partial(_responds, f"http://{address}/-/ready"), timeout=60, say="the second Prometheus")
            made = get(f"http://{address}/api/v1/admin/tsdb/snapshot", method="POST").json["data"]["name"]
        finally:
            process.terminate()
    analyzed = subprocess.run(
        ["promtool", "tsdb", "analyze", "--limit=100000", data / "snapshots" / made],
        check=False,
        capture_output=True,
        text=True,
    )
    assert analyzed.returncode == 0, analyzed.stderr
    _, _, names = analyzed.stdout.partition("Highest cardinality metric names:\n")
    return {name: int(count) for count, name in re.findall(r"^(\d+) (\S+)$", names, re.MULTILINE)}


def _responds(url: str) -> bool:
    try:
        return get(url, timeout=2).status == 200
    except OSError:
        return False


def test_every_engine_has_a_memory_limit(lab: Lab) -> None:
    for entry in lab.state["engines"]:
        environ = Path(f"/proc/{entry['pid']}/environ").read_bytes().split(b"\0")
        assert f"GOMEMLIMIT={engines.MEMORY_LIMIT}".encode() in environ, entry["name"]


def in_loki(lab: Lab, tenant: str, expression: str) -> list[tuple[dict[str, str], str]]:
    """Labels (structured metadata among them) and text of the lines that a LogQL query finds, the oldest first."""
    arguments = urlencode(
        {"query": expression, "limit": 5000, "start": int(time.time() - 3600), "direction": "forward"}
    )
    url = f"{engine_url(lab, 'loki')}/loki/api/v1/query_range?{arguments}"
    streams = get(url, headers={"X-Scope-OrgID": tenant}).json["data"]["result"]
    lines = [(int(time), stream["stream"], line) for stream in streams for time, line in stream["values"]]
    return [(labels, line) for _, labels, line in sorted(lines, key=lambda row: row[0])]


@pytest.mark.engines("loki", "alloy")
def test_lines_reach_loki_once_with_usage_in_its_own_tenant(lab: Lab) -> None:
    user = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))
    user.open(f"{lab.front}/sign-in", data=urlencode({"name": "alice"}).encode())
    for _ in range(50):
        user.open(f"{lab.front}/roll?die=fair").read()
    lab.settle()
    for service in lab.services:
        written = Counter(line for line in lab.log_lines(service))
        usage = Counter({line: count for line, count in written.items() if json.loads(line).get("usage") is True})
        for tenant, expected in (("usage", usage), ("operations", written - usage)):
            query = f'{{service_name="{service}"}}'
            wait_for(
                lambda query=query, tenant=tenant, expected=expected: (  # type: ignore[misc]
                    Counter(line for _, line in in_loki(lab, tenant, query)) & expected == expected
                ),
                say=f"{tenant} {service}",
            )
            # No duplicates, and no lines of the other tenant.
            found = Counter(line for _, line in in_loki(lab, tenant, query))
            assert not found - Counter(line for line in lab.log_lines(service))
            assert not found & (written - expected)
        # The page queries both at once.
        assert Counter(line for _, line in in_loki(lab, "operations|usage", query)) & written == written
        assert (service == "frontend") == bool(usage)


@pytest.mark.engines("loki", "alloy")
def test_labels_are_few_and_exclude_the_trace_id(lab: Lab) -> None:
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    query = f'{{service_name=~".+"}} | trace_id="{trace_id}"'
    wait_for(lambda: {labels["service_name"] for labels, _ in in_loki(lab, "operations", query)} == set(lab.services))
    for labels, line in in_loki(lab, "operations", query):
        document = json.loads(line)
        assert labels == {
            "service_name": document["logger"],
            "level": document["level"],
            "trace_id": document["trace_id"],
            "span_id": document["span_id"],
        }
    url = f"{engine_url(lab, 'loki')}/loki/api/v1/labels"
    assert get(url, headers={"X-Scope-OrgID": "operations"}).json["data"] == ["level", "service_name"]
    newest = in_loki(lab, "operations", query)[-1][1]
    assert json.loads(newest)["message"] == "GET /roll?die=fair 200"  # ordered by their own timestamps


@pytest.mark.engines("loki", "alloy")
def test_malformed_lines_are_kept_and_marked(lab: Lab) -> None:
    """Output of a process outside its logging, a crash for example."""
    mark = "malformed-by-the-test"
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    known = {"timestamp": now, "logger": "die-service", "message": mark}
    malformed = [
        f"Traceback {mark}",
        f'["{mark}"]',
        f'"{mark}"',
        f'{{"message": "{mark}"}}',
        f"{{{mark}",
        f"{mark}\t\\",
    ]
    odd_level = json.dumps({**known, "level": "TRACE"})
    odd_usage = json.dumps({**known, "level": "INFO", "usage": "true"})
    odd_time = json.dumps({**known, "level": "INFO", "timestamp": "yesterday"})
    long = mark + "x" * 2_000_000
    with open(lab.run_dir / "logs" / "die-service.jsonl", "a") as file:
        file.write("".join(line + "\n" for line in (*malformed, odd_level, odd_usage, odd_time, long)))

    query = f'{{service_name=~".+"}} |= "{mark}"'
    wait_for(lambda: len(in_loki(lab, "operations", query)) == len(malformed) + 4)
    lines = {line: labels for labels, line in in_loki(lab, "operations", query)}
    service = {"service_name": "die-service"}
    for line in malformed:
        assert lines[line] == {**service, "level": "unknown", "malformed": "true"}
    assert lines[odd_level] == {**service, "level": "unknown"}
    assert lines[odd_usage] == {**service, "level": "INFO"}  # only the JSON boolean is a usage event
    assert lines[odd_time] == {**service, "level": "INFO"}
    assert any(line == long[: 1024 * 1024] for line in lines)
    assert not in_loki(lab, "usage", query)


# The prefixes of each engine's metrics. Tempo writes to Prometheus with Prometheus's own code.
PREFIXES = {
    "otelcol_": "otel-collector",
    "tempo_": "tempo",
    "loki_write_": "alloy",
    "loki_source_": "alloy",
    "loki_": "loki",
    "alloy_": "alloy",
    "alertmanager_": "alertmanager",
    "prometheus_remote_storage_": "tempo",
    "prometheus_": "prometheus",
    "pg_": "postgres-exporter",
}
# Counters that are not exposed before the first loss, by the part of the name that the engine's program contains.
AFTER_A_LOSS = {
    "otelcol_exporter_send_failed_spans_total": "otelcol_exporter_send_failed_spans",
    "otelcol_exporter_enqueue_failed_spans_total": "otelcol_exporter_enqueue_failed_spans",
    "otelcol_exporter_send_failed_metric_points_total": "otelcol_exporter_send_failed_metric_points",
    "otelcol_exporter_enqueue_failed_metric_points_total": "otelcol_exporter_enqueue_failed_metric_points",
    "tempo_discarded_spans_total": "discarded_spans_total",
    "loki_discarded_samples_total": "discarded_samples_total",
    "prometheus_remote_storage_samples_dropped_total": "samples_dropped_total",
}


def owner(metric: str) -> str:
    """The engine whose metric this is, else empty."""
    return next((engine for prefix, engine in PREFIXES.items() if metric.startswith(prefix)), "")


def metrics_read() -> set[str]:
    """Every metric of an engine that a rule, a dashboard or a runbook reads."""
    rules = [
        rule["expr"]
        for path in (COMPOSE / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    runbooks = [
        query
        for path in (ROOT / "docs" / "runbooks").glob("*.md")
        for query in re.findall(r"```promql\n(.+?)\n```", path.read_text(), re.DOTALL)
    ]
    shown = [
        query.filled()
        for path in DASHBOARDS.glob("*.json")
        for query in queries(path.stem)
        if query.language == "promql"
    ]
    parsed = parse([("promql", text) for text in (*rules, *runbooks, *shown)])
    names = set()
    for selector in (selector for one in parsed for selector in one.selectors):
        among = [value for name, _, value in selector.matchers if name == "__name__"]
        names |= set(among[0].split("|")) if among else {selector.name}
    return {name for name in names if owner(name)}


@pytest.mark.engines("tempo", "otel-collector", "loki", "alloy", "alertmanager")
def test_the_metrics_that_rules_and_dashboards_read_are_those_of_the_engines(lab: Lab) -> None:
    get(f"{lab.front}/roll?die=fair")
    read = metrics_read()
    assert {owner(name) for name in read} >= set(PREFIXES.values()) - {"alloy"}
    targets = json.loads((lab.run_dir / "engines" / "prometheus" / "config" / "targets" / "lab.yml").read_text())
    pages = {target["labels"]["job"]: f"http://{target['targets'][0]}/metrics" for target in targets}
    binaries = {engine.name: engine.find() for engine in engines.ENGINES}

    def missing() -> set[str]:
        # The names on the page: prometheus_client's parser adds _total to counters.
        exposed = {
            engine: set(re.findall(r"^(\w+)[ {]", get(url).body.decode(), re.MULTILINE))
            for engine, url in pages.items()
            if engine in PREFIXES.values()
        }
        return {name for name in read - AFTER_A_LOSS.keys() if name not in exposed[owner(name)]}

    wait_for(lambda: not missing(), timeout=30, say=f"metrics: {missing()}")
    for name in read & AFTER_A_LOSS.keys():
        binary = binaries[owner(name)]
        assert binary
        with open(binary, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
            assert program.find(AFTER_A_LOSS[name].encode()) >= 0, name


@pytest.mark.engines("loki", "alloy", "alertmanager")
def test_a_line_that_loki_refuses_is_counted_and_alerted(lab: Lab) -> None:
    """The counter appears with the first loss, which a rate would therefore miss."""
    url, now = engine_url(lab, "loki"), time.time_ns()
    wait_for(lambda: query(lab, 'up{job="loki"} offset 1m == 1'), timeout=90, say="a minute of history")
    body = {"streams": [{"stream": {"service_name": "test"}, "values": [[str(now + 3600 * 10**9), "from the future"]]}]}
    request = urllib.request.Request(f"{url}/loki/api/v1/push", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("X-Scope-OrgID", "operations")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(ProxyHandler({})).open(request)
    assert refused.value.code == 400
    alert = 'ALERTS{alertname="PipelineLoss",alertstate="firing",job="loki",signal="logs"}'
    wait_for(lambda: query(lab, alert), timeout=30, say="the alert")


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which a process takes TCP connections."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(link))
    return {
        local.rpartition(":")[0]
        for table in ("tcp", "tcp6")
        for _, local, _, state, *rest in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if state == "0A" and f"socket:[{rest[5]}]" in inodes
    }


def test_engines_listen_on_loopback_only(lab: Lab) -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    for entry in lab.state["engines"]:
        addresses = listening(entry["pid"])
        assert addresses, entry["name"]
        assert addresses <= loopback, entry["name"]


@pytest.mark.engines("tempo", "loki")
def test_engines_keep_their_data_in_the_run_dir(lab: Lab) -> None:
    unused = {"tasks_disk_directory: /tmp/bloom-planner-queue"}  # of Loki's bloom filters, which are off
    for engine, path in (("tempo", "/status/config"), ("loki", "/config")):
        config = get(engine_url(lab, engine) + path, headers={"X-Scope-OrgID": "operations"}).body.decode()
        paths = {line.strip() for line in config.splitlines() if re.search(r": /\w", line)} - unused
        assert len(paths) > 5
        assert {line for line in paths if f" {lab.run_dir}" not in line and f" {COMPOSE}" not in line} == set()


def test_prometheus_accepts_the_shipped_configuration(lab: Lab) -> None:
    config = lab.run_dir / "engines" / "prometheus" / "config" / "prometheus.yml"
    assert config.read_bytes() == (COMPOSE / "prometheus" / "prometheus.yml").read_bytes()
    checked = subprocess.run(["promtool", "check", "config", config], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_engines_stop_with_the_lab(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1, "--engines")
    assert not running(lab, "postgres-exporter")
    pids = [entry["pid"] for entry in lab.state["engines"]]
    assert pids
    assert lab.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Ready at once, and deaf to SIGTERM.
DEAF_TEMPO = """\
#!{python}
import os, signal
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(os.environ["TEMPO_PORT"])), Ready).serve_forever()
"""


def test_an_engine_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    tempo = tmp_path / "tempo"
    tempo.write_text(DEAF_TEMPO.format(python=sys.executable))
    tempo.chmod(0o700)
    up = "from lab.supervise import supervisor; supervisor.ENGINE_STOP_TIMEOUT = 0.5; from lab import cli; cli.main()"
    arguments = ("up", "--engines", "--stage", "1", "--base-port", str(free_base_port()), "--run-dir", tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", up, *arguments], stdout=subprocess.DEVNULL, env=clean_environ(PATH=str(tmp_path))
    ) as process:
        state = wait_for(RunDir(tmp_path / "run").state, say="the lab is ready")
        (pid,) = (entry["pid"] for entry in state["engines"] if entry["name"] == "tempo")
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began < STOP_TIMEOUT / 2
    assert not Path(f"/proc/{pid}").exists()


def test_an_engine_port_in_use_is_reported(tmp_path: Path) -> None:
    base = free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + engines.FIRST_PORT))
        taken.listen()
        process = dicelab("up", "--engines", "--stage", "1", "--base-port", str(base), "--run-dir", tmp_path / "run")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {base + engines.FIRST_PORT}" in output.decode()
    assert "prometheus" in output.decode()


def test_the_lab_runs_without_any_engine(own_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = own_lab(2, "--engines", PATH=str(tmp_path))
    assert lab.state["engines"] == []
    assert get(f"{lab.front}/roll?die=fair").status == 200
    output = lab.run_dir.with_name("run0.out").read_text()
    assert "prometheus is not on PATH" in output
    assert "tempo is not on PATH" in output


@pytest.mark.engines("alloy")
@pytest.mark.parametrize("route", ["all", "usage"])
@pytest.mark.parametrize("source", ["files", "containers"])
def test_alloy_accepts_both_sources_with_both_routes(tmp_path: Path, source: str, route: str) -> None:
    variables = plan_engines(stages.load(6), 8000, tmp_path, tmp_path).variables("")
    variables |= {"LOG_ROUTE": route, "DOCKER_HOST": "unix:///var/run/docker.sock"}
    checked = subprocess.run(
        ["alloy", "validate", ALLOY / f"{source}.alloy"],
        env={**os.environ, **variables},
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.engines("alloy")
@pytest.mark.parametrize("file", sorted(ALLOY.glob("*.alloy")), ids=lambda file: file.name)
def test_alloy_files_are_formatted(file: Path) -> None:
    assert subprocess.run(["alloy", "fmt", "--test", file], check=False, capture_output=True).returncode == 0
