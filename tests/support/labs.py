"""Real labs for the tests: started by the command a user types, looked at through what it leaves behind."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

T = TypeVar("T")
TIMEOUT = 20.0  # seconds that something is waited for before its absence is a failure
PORTS = random.Random()  # of its own: Hypothesis sets the seed of the common one again and again
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def wait_for(what: Callable[[], T | None], timeout: float = TIMEOUT, say: str = "") -> T:
    """Ask until the answer is truthy, then return it."""
    deadline = time.monotonic() + timeout
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {say or what}")
        time.sleep(0.02)


def free_base_port() -> int:
    """A port that is free, as are those above it that a lab with all its engines takes."""
    while True:
        # Below those that the system gives to outgoing connections, one of which could take it meanwhile.
        base = PORTS.randrange(15_000, 32_000)
        try:
            for offset in (*range(3), *range(10, 30)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
            return base
        except OSError:
            continue


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def trace_id(self) -> str:
        return str(self.headers["X-Trace-Id"])


def get(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> Answer:
    """One request; an answer of 400 and above is an answer like any other."""
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def sign_in(lab: Lab, name: str = "alice") -> str:
    """Sign in, and return the ``Cookie`` header of the session."""
    host, port = lab.front.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    with closing(connection):
        form = urlencode({"name": name})
        connection.request("POST", "/sign-in", form, {"Content-Type": "application/x-www-form-urlencoded"})
        answer = connection.getresponse()
        assert answer.status == 303
        return str(answer.headers["Set-Cookie"]).partition(";")[0]


@dataclass(frozen=True)
class Span:
    """One span as it stands in a trace file."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    events: list[str]

    @property
    def failed(self) -> bool:
        return self.status == 2


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    return int(content) if kind == "intValue" else content


def _attributes(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry["key"]: _value(entry["value"]) for entry in entries}


def parse_spans(lines: Iterable[str]) -> list[Span]:
    """The spans of OTLP JSON lines."""
    spans = []
    for line in lines:
        for resource in json.loads(line)["resourceSpans"]:
            service = _attributes(resource["resource"]["attributes"])["service.name"]
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    spans.append(
                        Span(
                            service=service,
                            name=span["name"],
                            trace_id=span["traceId"],
                            span_id=span["spanId"],
                            parent_id=span.get("parentSpanId", ""),
                            kind=span["kind"],
                            start=int(span["startTimeUnixNano"]),
                            end=int(span["endTimeUnixNano"]),
                            status=span.get("status", {}).get("code", 0),
                            attributes=_attributes(span.get("attributes", [])),
                            events=[event["name"] for event in span.get("events", [])],
                        )
                    )
    return spans


Tree = tuple[str, str, tuple["Tree", ...]]


def tree(spans: list[Span], parent_id: str = "") -> tuple[Tree, ...]:
    """The spans below a parent as nested (service, name, children), siblings in the order of their start."""
    children = sorted((span for span in spans if span.parent_id == parent_id), key=lambda span: span.start)
    return tuple((span.service, span.name, tree(spans, span.span_id)) for span in children)


@dataclass
class Lab:
    """A lab that runs as a process of its own."""

    stage: int
    run_dir: Path
    base_port: int
    process: subprocess.Popen[bytes]
    state: dict[str, Any] = field(default_factory=dict)

    def url(self, service: str) -> str:
        return next(str(entry["url"]) for entry in self.state["services"] if entry["name"] == service)

    def pid(self, service: str) -> int:
        return next(int(entry["pid"]) for entry in self.state["services"] if entry["name"] == service)

    @property
    def services(self) -> list[str]:
        return [entry["name"] for entry in self.state["services"]]

    @property
    def front(self) -> str:
        """Where users go: the frontend, or the roller where there is none."""
        return self.url("frontend" if "frontend" in self.services else "dice-roller")

    def samples(self, service: str) -> list[Sample]:
        """What the service's ``/metrics`` says now."""
        body = get(self.url(service) + "/metrics", headers={"Accept": OPENMETRICS}).body.decode()
        return [sample for family in text_string_to_metric_families(body) for sample in family.samples]

    def value(self, service: str, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        return sum(
            sample.value
            for sample in self.samples(service)
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log_lines(self, service: str) -> list[str]:
        path = self.run_dir / "logs" / f"{service}.jsonl"
        # A line that is still being written has no newline yet.
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def logs(self, service: str | None = None) -> list[dict[str, Any]]:
        names = [service] if service else self.services
        return [json.loads(line) for name in names for line in self.log_lines(name)]

    def settle(self, *services: str) -> None:
        """Wait until every line that services have logged by now is in its file."""
        for service in services or self.services:
            marker = f"/settled-{time.monotonic_ns()}"
            get(self.url(service) + marker)
            wait_for(partial(self._has_line, service, marker))

    def _has_line(self, service: str, text: str) -> bool:
        return any(text in line for line in self.log_lines(service))

    def spans(self) -> list[Span]:
        lines = [
            line
            for path in sorted((self.run_dir / "traces").glob("*.jsonl*"))
            for line in path.read_text().split("\n")[:-1]
        ]
        return parse_spans(lines)

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """The spans of a trace once it has ``count`` of them."""

        def whole() -> list[Span] | None:
            spans = [span for span in self.spans() if span.trace_id == trace_id]
            return spans if len(spans) >= count else None

        return wait_for(whole, say=f"whole trace {trace_id}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


class Held:
    """Parts of a lab that are stopped by force and stay down until this is closed."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(lab.state["faults"])
        self._answers = self._socket.makefile()
        try:
            self.hold(name)
        except BaseException:
            self.close()
            raise

    def hold(self, name: str) -> None:
        with suppress(BrokenPipeError):  # refused; the answer says why
            self._socket.sendall(json.dumps({"hold": name}).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        assert answer == {"done": True}, answer

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def clean_environ(**variables: str) -> dict[str, str]:
    """Our environment without anything that would configure a lab."""
    drop = re.compile(r"OTEL_|DATABASE_URL|ROLL_|TRACES_|DB_|LOG_LEVEL|RANDOM_SEED|PYTEST_")
    return {name: value for name, value in os.environ.items() if not drop.match(name)} | variables


def dicelab(*arguments: str | Path, **variables: str) -> subprocess.Popen[bytes]:
    """The command as a user types it."""
    return subprocess.Popen(
        [sys.executable, "-m", "lab.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean_environ(**variables),
    )


def start(run_dir: Path, stage: int, *arguments: str, roll_delay: float = 0.05, **variables: str) -> Lab:
    """Start a lab and wait until it is ready."""
    base_port = free_base_port()
    output = run_dir.with_name(run_dir.name + ".out")
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lab.cli", "up", "--no-tail", "--stage", str(stage)),
                *("--base-port", str(base_port), "--run-dir", str(run_dir), "--roll-delay", str(roll_delay)),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=clean_environ(**variables),
        )

    def state() -> dict[str, Any] | None:
        assert process.poll() is None, f"dicelab up ended: {output.read_text()}"
        try:
            content: dict[str, Any] = json.loads((run_dir / "state.json").read_text())
        except (OSError, ValueError):
            return None
        return content

    try:
        found = wait_for(state, timeout=90, say=f"stage {stage} ready")
    except BaseException:
        process.kill()
        raise
    return Lab(stage, run_dir, base_port, process, found)


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of all processes that speak of a run dir."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environ = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdigit() and int(entry.name) != os.getpid() and str(run_dir) in command + environ:
            found.append(command)
    return found
