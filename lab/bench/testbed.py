"""The variants under load: their processes, and what one run of load measures."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import LabError
from lab.bench.load import load
from lab.bench.variants import REFERENCE, Variant
from lab.client import DIE_SERVICE, ROLLER, Lab
from lab.signals import total
from lab.supervise.processes import Process
from lab.supervise.rundir import RunDir
from lab.supervise.stages import clean_environ
from lab.waiting import within

READY_TIMEOUT = 60.0  # seconds
SCRAPE_TIMEOUT = 60.0  # seconds; a service under a thousand clients responds late
TICK = 1 / os.sysconf("SC_CLK_TCK")
LARGE_TRACE_FILES = {"TRACES_FILE_MAX_BYTES": str(2**30), "TRACES_FILE_BACKUPS": "1"}


@dataclass
class Run:
    """The result of loading one variant; times in milliseconds, CPU in microseconds a request, memory in MB."""

    variant: str
    path: str
    clients: int
    requests: int
    rate: float  # a second
    p50: float
    p99: float
    cpu: dict[str, float]  # by process
    failed: int
    memory: dict[str, float] = field(default_factory=dict)  # the peak of each process

    @property
    def total(self) -> float:
        return sum(self.cpu.values())


class Testbed:
    """What the variants share: a directory, a database, and ports, none of which is assigned twice."""

    def __init__(self, directory: Path, database: str, postgres_pid: int | None) -> None:
        self.directory = directory
        self.database = database
        self.postgres_pid = postgres_pid
        self._assigned: set[int] = set()

    def free_port(self) -> int:
        """A free port that was not assigned before; not an ephemeral port, because clients use thousands of those."""
        while True:
            port = random.randrange(10_000, 15_000)
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                if port not in self._assigned:
                    self._assigned.add(port)
                    return port


class Deployment:
    """The running services of a variant: an asynchronous context.

    Attributes:
        lab: the dice-roller and the die-service.
    """

    def __init__(self, testbed: Testbed, variant: Variant, **variables: str) -> None:
        self.variant = variant
        self._testbed = testbed
        self._variables = variant.variables | variables
        self._directory = Path(tempfile.mkdtemp(dir=testbed.directory))
        self._processes: dict[str, Process] = {}
        urls = {name: f"http://127.0.0.1:{testbed.free_port()}" for name in (ROLLER, DIE_SERVICE)}
        self._collector_port = testbed.free_port()
        self.lab = Lab(RunDir(self._directory), urls[ROLLER], urls, timeout=SCRAPE_TIMEOUT)

    async def __aenter__(self) -> Self:
        await self.lab.__aenter__()
        try:
            if self.variant.collector:
                await self._start("collector", ("-m", "bench.collector", str(self._collector_port)), {})
            for name, module in ((DIE_SERVICE, "dieservice"), (ROLLER, "roller")):
                await self._start(name, [part.format(module) for part in self.variant.command], self._settings(name))
            for name in self.lab.services:
                await self._ready(name)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.lab.__aexit__(kind, error, traceback)
        for process in reversed(self._processes.values()):
            await process.stop()

    async def _start(self, name: str, arguments: Sequence[str], variables: dict[str, str]) -> None:
        log = self._directory / name
        self._processes[name] = await Process.start(
            name,
            [sys.executable, *arguments],
            clean_environ(os.environ) | variables,
            log.with_suffix(".jsonl"),
            log.with_suffix(".stderr"),
            lambda *_: None,
        )

    def _settings(self, name: str) -> dict[str, str]:
        settings = {
            "PORT": self.lab.url(name).rpartition(":")[2],
            "DICE_SOURCE": "die-service",
            "DICE_STORE": "postgres",
            "ASYNC_ROLLS": "true",
            "ROLL_DELAY": "0",
            "DATABASE_URL": self._testbed.database,
            "DIE_SERVICE_URL": self.lab.url(DIE_SERVICE),
        }
        if self.variant.collector:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{self._collector_port}"
        else:
            settings |= LARGE_TRACE_FILES | {"TRACES_FILE": str(self._directory / f"{name}.spans")}
        return settings | self._variables

    def url(self, path: str) -> str:
        """The URL of a path, at the service that has the route."""
        return self.lab.url(DIE_SERVICE if path.startswith("/dice") else ROLLER) + path

    async def _ready(self, name: str) -> None:
        async for _ in within(READY_TIMEOUT):
            if await self.lab.fetch_not_ready(name) is None:
                return
            self._check_running()
        raise LabError(f"the {name} of {self.variant.name!r} is not ready after {READY_TIMEOUT:g} s")

    def _check_running(self) -> None:
        for name, process in self._processes.items():
            if not process.running:
                last_lines = "\n".join(process.last_lines())
                raise LabError(f"the {name} of {self.variant.name!r} has ended: {last_lines}")

    def pids(self) -> dict[str, list[int]]:
        pids = {name: [process.pid] for name, process in self._processes.items()}
        pids["this command"] = [os.getpid()]  # it writes the services' log lines to files, as dicelab up does
        if self._testbed.postgres_pid is not None:
            pids["postgres"] = [self._testbed.postgres_pid, *_children(self._testbed.postgres_pid)]
        return pids

    def memory(self) -> dict[str, float]:
        """The peak memory of each process, in MB."""
        return {name: _status(process.pid, "VmHWM") for name, process in self._processes.items()}

    def resident(self) -> dict[str, float]:
        """The current memory of each process, in MB."""
        return {name: _status(process.pid, "VmRSS") for name, process in self._processes.items()}

    async def dropped(self) -> float:
        """How many spans and lines were dropped so far; 0 where there is no telemetry."""
        if self.variant.command == REFERENCE:
            return 0.0
        dropped = 0.0
        for name in self.lab.services:
            samples = await self.lab.fetch_samples(name)
            if not any(sample.name == "telemetry_dropped_total" for sample in samples):
                raise LabError(f"the {name} has no telemetry_dropped_total")
            dropped += total(samples, "telemetry_dropped_total")
        return dropped

    async def rolls(self) -> float:
        """How many rolls the dice-roller has counted as successful so far."""
        return total(await self.lab.fetch_samples(ROLLER), "roll_requests_total", {"outcome": "success"})

    async def run(self, path: str, clients: int, seconds: float) -> Run:
        """Load a path and measure.

        Raises:
            LabError: when there was no response, or a process has ended.
        """
        before = {name: {pid: _cpu(pid) for pid in group} for name, group in self.pids().items()}
        try:
            result = await load(self.url(path), clients, seconds)
        finally:
            self._check_running()  # its error explains why the load failed
        requests = int(result["requests"])
        if not requests:
            raise LabError(f"no request to {path} was answered in {seconds:g} s")
        cpu = {
            # max(): a process that has ended has no CPU time any more. PostgreSQL starts and ends some at any time.
            name: sum(max(0.0, _cpu(pid) - before[name].get(pid, 0.0)) for pid in group) * 1e6 / requests
            for name, group in self.pids().items()
        }
        return Run(
            self.variant.name,
            path,
            clients,
            requests,
            round(requests / result["seconds"], 1),
            round(result["p50"], 2),
            round(result["p99"], 2),
            {name: round(used, 1) for name, used in cpu.items()},
            int(result["failed"]),
        )


def _cpu(pid: int) -> float:
    """The user and system CPU time of a process, in seconds; 0 after its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _status(pid: int, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return round(int(found[1]) / 1024, 1) if found else 0.0


def machine() -> str:
    """The machine that is measured, in a few words."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
