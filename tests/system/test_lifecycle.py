"""Starting and stopping services, disconnecting clients, and an unreachable collector."""

from __future__ import annotations

import http.server
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.labs import Lab, clean_environ, free_base_port, get, parse_spans, wait_for


def test_sigterm_lets_requests_finish_and_flushes(own_lab: Callable[..., Lab], telemetry: str) -> None:
    # With this seed a quarter of the forty rolls takes 1.5 to 2 s.
    lab = own_lab(5, roll_delay=2.0, RANDOM_SEED="1", TELEMETRY=telemetry, OTEL_BSP_SCHEDULE_DELAY="60000")
    results = []
    users = [
        threading.Thread(target=lambda: results.append(get(f"{lab.front}/roll-async?die=fair&times=5")))
        for _ in range(8)
    ]
    for user in users:
        user.start()
    wait_for(lambda: lab.value("frontend", "async_roll_requests_total") == 8)
    wait_for(lambda: lab.value("dice-roller", "async_rolls_in_progress") >= 5)
    assert lab.stop() == 0
    for user in users:
        user.join()
    assert [response.status for response in results] == [200] * 8
    spans = lab.spans()
    ids = {(span.trace_id, span.span_id) for span in spans}
    assert all(not span.parent_id or (span.trace_id, span.parent_id) in ids for span in spans)
    for response in results:
        # frontend 3; roller: server, question, its call, batch, 5 rolls; die-service 1, SELECT 1
        assert len([span for span in spans if span.trace_id == response.trace_id]) == 14
        lines = [line for line in lab.logs() if line.get("trace_id") == response.trace_id]
        assert {line["http_status"] for line in lines if "http_status" in line} == {200}
        assert len([line for line in lines if "http_status" in line]) == 3


def test_a_burst_of_connections_waits_in_the_accept_queue(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1)
    (service,) = lab.state["services"]
    os.kill(service["pid"], signal.SIGSTOP)  # it accepts no connections: they wait in the kernel's queue
    crowd = []
    try:
        for _ in range(400):
            crowd.append(socket.create_connection(("127.0.0.1", int(service["url"].rpartition(":")[2])), timeout=0.9))
    finally:
        os.kill(service["pid"], signal.SIGCONT)
    for connection in crowd:
        connection.settimeout(30)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert {connection.recv(12) for connection in crowd} == {b"HTTP/1.1 200"}
    for connection in crowd:
        connection.close()


def test_a_disconnecting_client_cancels_its_rolls(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(4, roll_delay=30, RANDOM_SEED="249163")  # with this seed the first of the rolls ends after 6 s
    host, port = lab.front.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"GET /roll-async?die=fair&times=50 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: lab.value("dice-roller", "async_rolls_in_progress") == 50)
    connection.close()
    wait_for(lambda: lab.value("dice-roller", "async_rolls_in_progress") == 0)
    wait_for(lambda: lab.value("dice-roller", "http_requests_total", handler="/roll-async", status="499") == 1)
    wait_for(lambda: lab.value("frontend", "http_requests_total", handler="/roll-async", status="499") == 1)
    assert lab.value("frontend", "streamlit_button_clicks_total") == 1
    lab.settle("frontend")
    said = [(line.level, line.message) for line in lab.lines("frontend")]
    assert ("INFO", "Roll abandoned") in said
    assert not [message for level, message in said if level == "ERROR"]


class Collector(http.server.BaseHTTPRequestHandler):
    """Accepts OTLP over HTTP as the real one does and keeps the names of the spans."""

    names: ClassVar[list[str]]

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        Collector.names += [
            span.name for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector(port: int) -> Iterator[list[str]]:
    Collector.names = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Collector.names
    finally:
        server.shutdown()
        server.server_close()


def settled(lab: Lab) -> float | None:
    """How many of the roller's spans were counted as dropped, once that number no longer changes."""
    before = lab.value("dice-roller", "telemetry_dropped_total", signal="traces")
    time.sleep(0.5)
    return before if lab.value("dice-roller", "telemetry_dropped_total", signal="traces") == before else None


def test_an_unreachable_collector_fails_no_request(own_lab: Callable[..., Lab], telemetry: str) -> None:
    port = free_base_port()
    lab = own_lab(
        2,
        roll_delay=0,
        TELEMETRY=telemetry,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_BSP_MAX_QUEUE_SIZE="100",
    )
    seconds = []
    for _ in range(300):
        started = time.monotonic()
        assert get(f"{lab.front}/roll?die=fair").status == 200
        seconds.append(time.monotonic() - started)
    # An export is retried every second. The slowest requests may have waited for a busy machine.
    assert sorted(seconds)[-10] < 0.5
    assert max(seconds) < 5
    assert not list((lab.run_dir / "traces").iterdir())
    # Once the collector runs, all queued spans arrive; all others have been counted as dropped.
    lost = wait_for(partial(settled, lab))
    assert 300 - 100 - 100 <= lost <= 300 - 100  # a batch is being exported while 100 more wait
    wait_for(lambda: any("spans dropped" in line["message"] for line in lab.logs("dice-roller")))
    with collector(port) as names:
        wait_for(lambda: names.count("GET /roll") >= 300 - lost, timeout=40)
        assert get(f"{lab.front}/roll?die=fair").status == 200
        wait_for(lambda: names.count("GET /roll") >= 301 - lost)
    assert names.count("GET /roll") == 301 - lost
    assert lab.value("dice-roller", "telemetry_dropped_total", signal="traces") == lost
    started = time.monotonic()
    get(f"{lab.front}/roll?die=fair")
    assert lab.stop() == 0
    assert time.monotonic() - started < 25  # the collector is down again: the last spans are dropped


class Nonsense(http.server.BaseHTTPRequestHandler):
    """Responds to every request with JSON that does not contain a roll."""

    def do_GET(self) -> None:
        body = b'{"nothing": 1}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_an_invalid_roll_response_is_not_passed_on() -> None:
    roller = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=roller.serve_forever, daemon=True).start()
    port = free_base_port()
    frontend = subprocess.Popen(
        [sys.executable, "-m", "frontend"],
        env=clean_environ(
            PORT=str(port),
            DICE_ROLLER_URL=f"http://127.0.0.1:{roller.server_address[1]}",
            ASYNC_ROLLS="true",
            OTEL_TRACES_EXPORTER="none",
        ),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(partial(_responds, f"http://127.0.0.1:{port}/readyz"))
        for path in ("/roll?die=fair", "/roll-async?die=fair&times=2"):
            response = get(f"http://127.0.0.1:{port}{path}")
            assert response.status == 503
            assert "no roll" in response.json["detail"]
    finally:
        frontend.terminate()
        frontend.wait(20)
        roller.shutdown()
        roller.server_close()


def _responds(url: str) -> bool:
    try:
        return get(url).status == 200
    except OSError:
        return False


def run_service(module: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module],
        check=False,
        env=clean_environ(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("module", "variable", "value"),
    [
        ("roller", "PORT", "eighty"),
        ("roller", "PORT", "70000"),
        ("roller", "ROLL_DELAY", "-1"),
        ("roller", "ROLL_DELAY", "nan"),
        ("roller", "MAX_ROLLS", "0"),
        ("roller", "ASYNC_ROLLS", "perhaps"),
        ("roller", "DICE_SOURCE", "heaven"),
        ("roller", "LOG_LEVEL", "LOUD"),
        ("roller", "RANDOM_SEED", "x"),
        ("roller", "OTEL_TRACES_EXPORTER", "pigeon"),
        ("roller", "OTEL_PROPAGATORS", "smoke-signals"),
        ("roller", "OTEL_BSP_MAX_QUEUE_SIZE", "none"),
        ("roller", "OTEL_EXPORTER_OTLP_PROTOCOL", "smoke"),
        ("roller", "OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("dieservice", "DICE_FILE", "/no/such/file"),
        ("dieservice", "DB_POOL_SIZE", "many"),
        ("roller", "ALLOWED_HOSTS", "http://lab.example"),
        ("roller", "HEADER_TIMEOUT", "never"),
        ("frontend", "DICE_ROLLER_URL", "not a url"),
        ("frontend", "MAX_PAGES", "0"),
        ("frontend", "ROLLER_TIMEOUT", "0"),
        ("roller", "TELEMETRY", "slow"),
    ],
)
def test_an_invalid_setting_stops_the_start_with_one_line(module: str, variable: str, value: str) -> None:
    result = run_service(module, **{"DICE_STORE": "postgres", "DATABASE_URL": "postgresql:///x", variable: value})
    assert result.returncode == 2
    assert not result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert variable in result.stderr
    assert value in result.stderr


def test_a_short_session_secret_is_refused_and_not_shown() -> None:
    result = run_service("frontend", SIGN_IN="true", SESSION_SECRET="s3cret")
    assert result.returncode == 2
    assert result.stderr == "frontend: SESSION_SECRET: must have 32 characters or more, not 6\n"
    assert "s3cret" not in result.stdout


def test_a_database_password_is_never_shown() -> None:
    result = run_service("dieservice", DICE_STORE="postgres", DATABASE_URL="postgresql://u:s3cret@[/x")
    assert result.returncode == 2
    assert "DATABASE_URL" in result.stderr
    assert "s3cret" not in result.stderr + result.stdout


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_service("roller", PORT=port, TRACES_FILE=str(tmp_path / "traces.jsonl"))
    assert result.returncode == 1
    assert port in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert all(json.loads(line) for line in result.stdout.splitlines())


def test_spans_are_kept_while_the_disk_is_full(own_lab: Callable[..., Lab], telemetry: str) -> None:
    lab = own_lab(1, TELEMETRY=telemetry, OTEL_BSP_SCHEDULE_DELAY="20")
    (service,) = lab.state["services"]
    assert get(f"{lab.front}/roll?die=fair").status == 200
    wait_for(lambda: len(lab.spans()) == 1)
    (file,) = (lab.run_dir / "traces").iterdir()
    unlimited = resource.prlimit(service["pid"], resource.RLIMIT_FSIZE)
    # Space for some more bytes, but not for a whole batch.
    resource.prlimit(service["pid"], resource.RLIMIT_FSIZE, (file.stat().st_size + 100, unlimited[1]))
    responses = [get(f"{lab.front}/roll?die=fair") for _ in range(20)]
    wait_for(lambda: any("exported" in line["message"] for line in lab.logs() if line["level"] == "ERROR"))
    resource.prlimit(service["pid"], resource.RLIMIT_FSIZE, unlimited)
    wait_for(lambda: len(lab.spans()) == 21)
    assert {response.status for response in responses} == {200}
    assert lab.value("dice-roller", "telemetry_dropped_total", signal="traces") == 0
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_log_lines_are_kept_while_the_disk_is_full(own_lab: Callable[..., Lab], telemetry: str) -> None:
    lab = own_lab(1, roll_delay=0, TELEMETRY=telemetry)
    file, console = lab.log_file("dice-roller"), lab.run_dir.with_name(lab.run_dir.name + ".out")

    def rolled() -> int:
        return sum(line["message"] == "Roll completed" for line in lab.logs("dice-roller"))

    for _ in range(20):
        assert get(f"{lab.front}/roll?die=fair").status == 200
    wait_for(lambda: rolled() == 20)
    unlimited = resource.prlimit(lab.process.pid, resource.RLIMIT_FSIZE)
    # Space for some more bytes, but not for a whole line.
    resource.prlimit(lab.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 100, unlimited[1]))
    responses = [get(f"{lab.front}/roll?die=fair") for _ in range(40)]
    wait_for(lambda: "cannot be written: File too large" in console.read_text())
    resource.prlimit(lab.process.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_for(lambda: rolled() == 60)
    assert {response.status for response in responses} == {200}
    assert all(json.loads(line) for line in file.read_text().splitlines())
    assert lab.value("dice-roller", "telemetry_dropped_total", signal="logs") == 0
    wait_for(lambda: "Log files can be written again.\n" in console.read_text())  # once it can be written itself
    assert console.read_text().count("cannot be written") == 1


def test_standard_variables_apply_and_trace_files_are_bounded(tmp_path: Path) -> None:
    """Sampler, resource attributes and service name work as documented; files rotate and stay bounded."""
    port = free_base_port()
    file = tmp_path / "traces" / "spans.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "roller"],
        env=clean_environ(
            PORT=str(port),
            ROLL_DELAY="0",
            TRACES_FILE=str(file),
            TRACES_FILE_MAX_BYTES="20000",
            TRACES_FILE_BACKUPS="2",
            OTEL_BSP_SCHEDULE_DELAY="20",
            OTEL_SERVICE_NAME="other-name",
            OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0",
        ),
        stdout=subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(partial(_responds, url + "/readyz"))
        sampled = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        for _ in range(100):
            assert get(url + "/roll?die=fair").status == 200  # not sampled: ratio 0
            assert get(url + "/roll?die=fair", headers=sampled).status == 200  # the caller has decided
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    files = sorted(file.parent.iterdir())
    assert [path.name for path in files] == ["spans.jsonl", "spans.jsonl.1", "spans.jsonl.2"]
    assert all(path.stat().st_size < 60_000 for path in files)
    spans = parse_spans(line for path in files for line in path.read_text().splitlines())
    assert spans
    assert {span.service for span in spans} == {"other-name"}
    assert {span.trace_id for span in spans} == {"1" * 32}
    lines = [json.loads(line) for line in out.splitlines()]
    assert sum(1 for line in lines if line["message"] == "Roll completed") == 200  # logs stay complete
