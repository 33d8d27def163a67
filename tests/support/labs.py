"""Real labs for the tests: started by the user's command, observed through :mod:`lab.client`."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlencode

from lab import client
from lab.signals import OPENMETRICS, Sample, Span, parse_line, parse_samples, parse_spans, total
from lab.supervise import engines, stages
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.rundir import RunDir
from lab.waiting import within

__all__ = ["OPENMETRICS", "Sample", "Span", "parse_spans"]

T = TypeVar("T")
TIMEOUT = 40.0  # seconds after which a missing effect is a failure
CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
LAB_PORTS = engines.FIRST_PORT + len(engines.PORTS)


def wait_for(what: Callable[[], T | None], timeout: float = TIMEOUT, say: str = "") -> T:
    """Call a function until its result is truthy, then return that result."""
    for _ in within(timeout, poll=0.02):
        found = what()
        if found:
            return found
    raise AssertionError(f"not within {timeout} s: {say or what}")


def port_range(environ: Mapping[str, str] = os.environ) -> range:
    """The ports that labs of this process may use: each worker of pytest-xdist has its own range."""
    # Below the ephemeral ports, so that no outgoing connection takes one of them, and above those of dicelab diff.
    first, last = 15_000, 32_000
    workers = int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    part = (last - first) // workers
    return range(first + number * part, first + (number + 1) * part)


def _base_ports() -> Iterator[int]:
    """Each base port of this process in turn, so that no lab gets ports of a lab whose services are being restarted."""
    ports = range(port_range().start, port_range().stop - LAB_PORTS, LAB_PORTS)
    # Starts at a random port: other runs of the tests on this machine use the same range.
    first = random.SystemRandom().randrange(len(ports))
    yield from cycle([*ports[first:], *ports[:first]])


BASE_PORTS = _base_ports()
_TAKEN = Lock()  # tests start labs in threads


def free_base_port() -> int:
    """A base port whose ports are all free, including those of the engines."""
    while True:
        with _TAKEN:
            base = next(BASE_PORTS)
        with suppress(OSError):
            for offset in (*range(3), *range(engines.FIRST_PORT, LAB_PORTS)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
            return base


@dataclass(frozen=True)
class Response:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def trace_id(self) -> str:
        return str(self.headers["X-Trace-Id"])


def get(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> Response:
    """One request; a status of 400 and above is not an error."""
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return Response(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, error.headers, error.read())


def sign_in(lab: Lab, name: str = "alice") -> str:
    """Sign in, and return the ``Cookie`` header of the session."""
    host, port = lab.front.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    with closing(connection):
        form = urlencode({"name": name})
        connection.request("POST", "/sign-in", form, {"Content-Type": "application/x-www-form-urlencoded"})
        response = connection.getresponse()
        assert response.status == 303
        return str(response.headers["Set-Cookie"]).partition(";")[0]


Tree = tuple[str, str, tuple["Tree", ...]]


def tree(spans: list[Span], parent_id: str = "") -> tuple[Tree, ...]:
    """The spans below a parent as nested (service, name, children), siblings in the order of their start."""
    children = sorted((span for span in spans if span.parent_id == parent_id), key=lambda span: span.start)
    return tuple((span.service, span.name, tree(spans, span.span_id)) for span in children)


@dataclass
class Lab(client.Lab):
    """A lab that runs as a separate process: the model of :mod:`lab.client`, and operations for tests."""

    process: subprocess.Popen[bytes] = field(kw_only=True)
    base_port: int = field(kw_only=True)

    def pid(self, service: str) -> int:
        return next(int(entry["pid"]) for entry in self.state["services"] if entry["name"] == service)

    def samples(self, service: str) -> list[Sample]:
        """The samples on the service's ``/metrics``."""
        return parse_samples(get(self.url(service) + "/metrics", headers={"Accept": OPENMETRICS}).body.decode())

    def value(self, service: str, name: str, **labels: str) -> float:
        """The sum of all samples with this name and these labels."""
        return total(self.samples(service), name, labels)

    def logs(self, service: str | None = None) -> list[dict[str, Any]]:
        """The log lines of one service or of all; each must be a JSON object."""
        names = [service] if service else self.services
        return [dict(parse_line(line).fields) for name in names for line in self.log_lines(name)]

    def settle(self, *services: str) -> None:
        """Wait until every line that services have logged so far is in its file."""
        for service in services or self.services:
            marker = f"/settled-{time.monotonic_ns()}"
            get(self.url(service) + marker)
            wait_for(partial(self._has_line, service, marker))

    def _has_line(self, service: str, text: str) -> bool:
        return any(text in line for line in self.log_lines(service))

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """The spans of a trace once it has ``count`` of them."""

        def whole() -> list[Span] | None:
            spans = self.spans(trace_id)
            return spans if len(spans) >= count else None

        return wait_for(whole, say=f"whole trace {trace_id}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


class Held:
    """Kills parts of a lab and holds them down until this is closed."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(lab.state["faults"])
        self._responses = self._socket.makefile()
        try:
            self.hold(name)
        except BaseException:
            self.close()
            raise

    def hold(self, name: str) -> None:
        with suppress(BrokenPipeError):  # refused; the response says why
            self._socket.sendall(json.dumps({"hold": name}).encode() + b"\n")
        response = json.loads(self._responses.readline())
        assert response == {"done": True}, response

    def close(self) -> None:
        self._responses.close()
        self._socket.close()


def clean_environ(**variables: str) -> dict[str, str]:
    """The environment without variables that would configure a lab.

    It names no CA certificates: reading them takes each process 0.07 s, and no lab of a test uses TLS.
    """
    drop = re.compile(r"OTEL_|DATABASE_URL|ROLL_|TRACES_|DB_|LOG_LEVEL|RANDOM_SEED|PYTEST_")
    return {name: value for name, value in os.environ.items() if not drop.match(name)} | CERTIFICATES | variables


def dicelab(*arguments: str | Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start the command as a user would."""
    return subprocess.Popen(
        [sys.executable, "-m", "lab.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean_environ(**variables),
    )


@cache
def _database() -> Path:
    """The data of a new database; each lab starts with a copy of it, which saves 1.4 s of CPU time."""
    directory = Path(tempfile.mkdtemp(prefix="dicelab-database-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    server = EmbeddedPostgres(directory / "postgres")
    server.start()
    server.close()
    return (directory / "postgres").resolve()


def start(run_dir: Path, stage: int, *arguments: str, roll_delay: float = 0.05, **variables: str) -> Lab:
    """Start a lab and wait until it is ready; Prometheus starts no probes, so that only the test rolls."""
    variables = {"PROBES": "false", **variables}
    if not run_dir.exists() and stages.load(stage).postgres and "DATABASE_URL" not in variables:
        run_dir.mkdir(mode=0o700, parents=True)
        shutil.copytree(_database(), run_dir / "postgres")
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
    return Lab.of_state(RunDir(run_dir), found, process=process, base_port=base_port)


def scrape_every_second(lab: Lab) -> None:
    """Let Prometheus scrape and evaluate its rules every second instead of every five."""
    config = lab.run_dir / "engines" / "prometheus" / "config"
    for path in (config / "prometheus.yml", *(config / "rules").iterdir()):
        path.write_text(re.sub(r"((?:interval|timeout): )\d+s", r"\g<1>1s", path.read_text()))
    os.kill(next(entry["pid"] for entry in lab.state["engines"] if entry["name"] == "prometheus"), signal.SIGHUP)


def processes_of(run_dir: Path) -> list[str]:
    """The command lines of all processes that contain the path of a run dir, or of its linked data."""
    names = {str(run_dir), str((run_dir / "postgres").resolve())}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environ = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        named = any(name in command + environ for name in names)
        if entry.name.isdigit() and int(entry.name) != os.getpid() and named:
            found.append(command)
    return found
