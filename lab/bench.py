"""``dicelab bench``: measures what telemetry costs, compared with the same services without telemetry.

All variants are started together, and one at a time is under load. Each round loads every variant, in a random order.
Ratios compare runs of the same round, so that other work on the machine affects all variants alike. The most reliable
figure is the CPU time of a request: it hardly depends on other work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lab import LabError
from lab.client import DIE_SERVICE, ROLLER, Lab
from lab.signals import OPENMETRICS, parse_samples, total
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.processes import Process, schedule_batch
from lab.supervise.rundir import RunDir
from lab.waiting import sleep, within

READY_TIMEOUT = 60.0  # seconds
SCRAPE_TIMEOUT = 60.0  # seconds; a service under a thousand clients answers late
TABLE_WIDTH = 150  # columns
TICK = 1 / os.sysconf("SC_CLK_TCK")
LARGE_TRACE_FILES = {"TRACES_FILE_MAX_BYTES": str(2**30), "TRACES_FILE_BACKUPS": "1"}
NO_TRACES = {"OTEL_SDK_DISABLED": "true"}
NO_LOGS = {"LOG_LEVEL": "CRITICAL"}
SAMPLE_A_TENTH = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}


@dataclass(frozen=True)
class Variant:
    """One way to run the dice-roller and the die-service.

    Attributes:
        command: the arguments of Python; ``{}`` stands for the package of the service.
        variables: added to the environment.
        collector: whether spans go to a collector over OTLP/HTTP instead of to a file.
    """

    name: str
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    collector: bool = False


SERVICE = ("-m", "{}")
REFERENCE = ("-m", "bench.reference", "{}")
WITHOUT_METRICS = ("-m", "bench.service", "{}")
BARE = Variant("no telemetry", REFERENCE)
TELEMETRY = ("standard", "fast")  # the values of the environment variable TELEMETRY
FILES = {which: Variant(which, SERVICE, {"TELEMETRY": which}) for which in TELEMETRY}


def path_variants(telemetry: Sequence[str] = TELEMETRY) -> list[Variant]:
    """The variants of ``paths``."""
    over_otlp = [Variant(f"{which}, over OTLP", SERVICE, {"TELEMETRY": which}, collector=True) for which in telemetry]
    return [BARE, *(FILES[which] for which in telemetry), *over_otlp]


def signal_variants(telemetry: Sequence[str] = TELEMETRY) -> list[Variant]:
    """The variants of ``signals``."""
    return [BARE] + [
        Variant(f"{which}: {signal}", command, {"TELEMETRY": which} | variables)
        for which in telemetry
        for signal, command, variables in (
            ("metrics alone", SERVICE, NO_TRACES | NO_LOGS),
            ("logs alone", WITHOUT_METRICS, NO_TRACES),
            ("traces alone", WITHOUT_METRICS, NO_LOGS),
            ("all", SERVICE, {}),
            ("all, a tenth of the traces", SERVICE, SAMPLE_A_TENTH),
        )
    ]


ROLL = "/roll?die=fair"
PATHS = (
    ROLL,
    *(f"/roll-async?die=fair&times={times}" for times in (10, 100)),
    "/dice?identifier=fair",  # of the die-service
)


MANY_CLIENTS = 1000  # clients that roll with the real delay
SUSTAINED_SHARE = 0.98  # of the possible rolls; from this share on the services keep up with the clients
BATCHES = (1, 2, 5, 10, 20, 50, 100)  # rolls
BATCH_CLIENTS = 16
OVERLOAD_PAUSE = 3.0  # seconds to recover from more clients than the services accept


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


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        what: the measurements: ``signals``, ``paths``, ``scale``; empty for the first two.
        rounds: how often each variant is measured.
        seconds: the duration of each measurement.
        clients: the number of connections.
        minutes: how long ``scale`` measures one lab over time.
        telemetry: the package of :mod:`otel` that is measured; ``None`` for both.
        json: the file that every run is written to; ``-`` is stdout.
    """

    what: tuple[str, ...]
    rounds: int
    seconds: float
    clients: int
    minutes: float
    telemetry: str | None
    json: Path | None

    @property
    def packages(self) -> Sequence[str]:
        return [self.telemetry] if self.telemetry else TELEMETRY


def run(args: Options, console: Console) -> int:
    """Run the command; returns 0, or 1 if a request failed or a span or line was dropped."""
    unknown = set(args.what) - {"signals", "paths", "scale"}
    if unknown:
        raise LabError(f"bench knows signals, paths and scale, not {', '.join(sorted(unknown))}")
    if args.json == Path("-"):
        console = Console(stderr=True)
    console.width = max(console.width, TABLE_WIDTH)  # wide enough for every column
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    schedule_batch()  # as dicelab up does
    directory = Path(tempfile.mkdtemp(prefix="dicelab-bench-"))
    # All variants run at the same time, each with a connection pool.
    pools = max(len(signal_variants()), len(path_variants()))
    postgres = EmbeddedPostgres(directory / "postgres", max_connections=20 * pools)
    try:
        url = os.environ.get("DATABASE_URL", "")
        if not url:
            postgres.start()
            url = postgres.url
        return asyncio.run(_bench(args, console, Testbed(directory, url, postgres.pid)))
    except KeyboardInterrupt:
        raise LabError("interrupted before everything was measured") from None
    finally:
        postgres.close()
        shutil.rmtree(directory, ignore_errors=True)


async def _bench(args: Options, console: Console, testbed: Testbed) -> int:
    document: dict[str, Any] = {"machine": _machine(), "load": "wrk" if shutil.which("wrk") else "bench.load"}
    faults: list[str] = []
    for part in dict.fromkeys(args.what or ("signals", "paths")):
        measure = {"signals": _signals, "paths": _paths, "scale": _scale}[part]
        document[part] = await measure(args, console, testbed, faults)
    for fault in faults:
        console.print(fault, style="bold red", soft_wrap=True)
    if args.json:
        text = json.dumps(document | {"faults": faults}, indent=1)
        print(text) if args.json == Path("-") else args.json.write_text(text + "\n")
    return 1 if faults else 0


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


# --- the variants under load ---


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
            _clean_environ() | variables,
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

    async def run(self, path: str, clients: int, seconds: float) -> Run:
        """Load a path and measure.

        Raises:
            LabError: when no request was answered, or a process has ended.
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


async def load(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Load a URL; returns ``requests``, ``seconds``, ``failed``, and ``p50`` and ``p99`` in milliseconds."""
    if shutil.which("wrk"):
        duration = f"-d{max(1, round(seconds))}s"
        # wrk's own time-out of 2 s is too short for a thousand clients.
        return read_wrk(await _output("wrk", "-t1", f"-c{clients}", duration, "--timeout", "10s", "--latency", url))
    found: dict[str, float] = json.loads(
        await _output(sys.executable, "-m", "bench.load", url, str(clients), str(seconds))
    )
    return found


def read_wrk(out: str) -> dict[str, float]:
    """Read the output of ``wrk --latency``; returns the same as :func:`load`."""
    count = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", out)
    if count is None:
        raise LabError(f"unexpected output of wrk: {out}")
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    return {
        "requests": int(count[1]),
        "seconds": _milliseconds(count[2], count[3]) / 1000,
        "failed": int(failed[1] if failed else 0) + sum(map(int, broken.groups() if broken else ())),
        "p50": _percentile(out, 50),
        "p99": _percentile(out, 99),
    }


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"{command[0]} ended with status {process.returncode}")
    return out.decode()


def _percentile(out: str, percentile: int) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m)\s*$", out, re.MULTILINE)
    return _milliseconds(found[1], found[2]) if found else 0.0


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]


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


def _clean_environ() -> dict[str, str]:
    """The environment without the variables that would configure a service."""
    drop = re.compile(
        r"OTEL_|DATABASE_URL|ROLL_|TRACES_|DB_|DIE_SERVICE_|LOG_LEVEL|RANDOM_SEED|EVENT_LOOP|TELEMETRY$|PORT$|HOST$"
    )
    return {name: value for name, value in os.environ.items() if not drop.match(name)}


# --- the measurements ---


async def _signals(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    variants = signal_variants(args.packages)
    runs = await _rounds(testbed, variants, (ROLL,), args, faults)
    rows = _table(f"{ROLL}, {args.clients} clients, {args.rounds} rounds of {args.seconds:g} s", console)
    for variant in variants:
        _row(rows, variant.name, runs[variant.name, ROLL], runs[BARE.name, ROLL])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def _paths(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    variants = path_variants(args.packages)
    runs = await _rounds(testbed, variants, PATHS, args, faults)
    title = f"With and without telemetry, {args.clients} clients, for batches at most {BATCH_CLIENTS}"
    rows = _table(title, console)
    for path in PATHS:
        rows.add_row(path, style="bold")
        for variant in variants:
            _row(rows, f"  {variant.name}", runs[variant.name, path], runs[BARE.name, path])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def _rounds(
    testbed: Testbed, variants: Sequence[Variant], paths: Sequence[str], args: Options, faults: list[str]
) -> dict[tuple[str, str], list[Run]]:
    """Load each variant on each path once a round; returns their runs."""
    # With more clients, batches of a hundred would not be answered within a round.
    clients = {path: min(args.clients, BATCH_CLIENTS) if "times=" in path else args.clients for path in paths}
    runs: dict[tuple[str, str], list[Run]] = {(variant.name, path): [] for variant in variants for path in paths}
    shuffled = random.Random(0)
    async with contextlib.AsyncExitStack() as stack:
        # One after the other: started together, each would take too long.
        deployments = [await stack.enter_async_context(Deployment(testbed, variant)) for variant in variants]
        for one in deployments:  # warm up: connections, caches
            for path in paths:
                await one.run(path, clients[path], min(1, args.seconds))
        for _ in range(args.rounds):
            for path in paths:
                for one in shuffled.sample(deployments, len(deployments)):
                    run = await one.run(path, clients[path], args.seconds)
                    runs[one.variant.name, path].append(run)
                    if run.failed:
                        faults.append(f"{one.variant.name}: {run.failed} requests to {path} failed")
        for one in deployments:
            if dropped := await one.dropped():
                faults.append(f"{one.variant.name}: {dropped:g} spans or lines were dropped")
            for path in paths:
                for run in runs[one.variant.name, path]:
                    run.memory = one.memory()
    return runs


async def _scale(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    scale = _Scale(args, console, faults)
    sustained = {}
    for variant in (BARE, *(FILES[which] for which in args.packages)):
        async with Deployment(testbed, variant, ROLL_DELAY="1") as deployment:
            await scale.with_delay(deployment, args.clients)
            sustained[variant.name] = await scale.with_delay(deployment, MANY_CLIENTS)
    if limit := machine_limit(sustained[BARE.name]):
        console.print(limit, soft_wrap=True)
    if len(args.packages) == len(TELEMETRY):
        console.print(advice(sustained), soft_wrap=True)
    for which in args.packages:
        async with Deployment(testbed, FILES[which]) as deployment:
            await deployment.run(ROLL, args.clients, 1)  # warm up
            await scale.by_batch_size(deployment)
    async with Deployment(testbed, FILES[args.telemetry or os.environ.get("TELEMETRY") or "standard"]) as deployment:
        await deployment.run(ROLL, args.clients, 1)  # warm up
        await scale.by_clients(deployment)
        await scale.by_time(deployment)
    return scale.runs


def machine_limit(share: float) -> str:
    """A remark where the machine is too slow even without telemetry; empty where it is not.

    Args:
        share: the sustained share of the possible rolls, without telemetry.
    """
    if share >= SUSTAINED_SHARE:
        return ""
    return f"This machine sustains {share:.1%} of the possible rolls without telemetry: compare the packages with that."


def advice(sustained: dict[str, float]) -> str:
    """Whether the fast package is worth using.

    Args:
        sustained: the share of the possible rolls that each package sustains with the delay, by package.
    """
    if sustained["standard"] >= SUSTAINED_SHARE:
        return f"TELEMETRY=standard sustains {SUSTAINED_SHARE:.0%} of the possible rolls here; fast is not needed."
    gain = sustained["fast"] / sustained["standard"]
    return (
        f"TELEMETRY=fast is advisable for so many clients: it sustains {gain:.2f} times as many rolls as standard."
        " `dicelab up --workers` adds CPUs to the standard one."
    )


class _Scale:
    """The measurements of ``scale``; ``runs`` is what ``--json`` writes."""

    def __init__(self, args: Options, console: Console, faults: list[str]) -> None:
        self.runs: list[dict[str, Any]] = []
        self._args = args
        self._console = console
        self._faults = faults

    def _keep(self, run: Run, rolls: int, may_fail: bool = False, **more: float) -> float:
        """Record a run; returns the CPU time of a roll in µs."""
        if run.failed and not may_fail:
            self._faults.append(f"{run.failed} requests to {run.path} from {run.clients} clients failed")
        self.runs.append(asdict(run) | {"rolls": rolls} | more)
        return run.total / rolls

    async def with_delay(self, deployment: Deployment, clients: int) -> float:
        """Measure rolls with their delay; returns the sustained share of the possible rolls."""
        args = self._args
        before = await deployment.dropped()
        await deployment.run(ROLL, clients, 2)  # warm up
        async with Scraper(deployment, every=args.seconds / 3) as scraper:
            run = await deployment.run(ROLL, clients, args.seconds * 10)
        # The burst at the start and the rolls in flight at the end distort the load generator's rate, so the sustained
        # rate comes from the dice-roller's counter.
        rate = scraper.rate(after=args.seconds)
        scrapes = scraper.took
        dropped = await deployment.dropped() - before
        self._keep(run, 1, scrape_ms=max(scrapes), sustained=round(rate, 1), dropped=dropped)
        possible = clients / 0.5
        self._console.print(
            f"{deployment.variant.name}, {clients} clients, each roll with its delay of up to 1 s:"
            f" {rate:,.0f} rolls/s sustained,"
            f" {rate / possible:.1%} of the {possible:,.0f} that are possible, and {run.rate:,.0f} from the first"
            f" request to the last; {run.total:.0f} µs of CPU a roll."
            f" /metrics meanwhile: {statistics.median(scrapes):.1f} ms, at most {max(scrapes):.1f} ms,"
            f" in {len(scrapes)} scrapes.",
            soft_wrap=True,
        )
        if dropped:
            name = deployment.variant.name
            self._faults.append(f"{name}, {clients} clients with the delay: {dropped:,.0f} spans or lines were dropped")
        return rate / possible

    async def by_batch_size(self, deployment: Deployment) -> None:
        name = deployment.variant.name
        rows = Table(
            *("rolls in a batch", "rolls/s", "CPU µs a roll", "dropped"),
            title=f"By batch size, {name}",
            title_justify="left",
        )
        rates: list[tuple[float, float]] = []  # rolls a second, spans and lines dropped
        for times in BATCHES:
            before = await deployment.dropped()
            runs = [
                await deployment.run(f"/roll-async?die=fair&times={times}", BATCH_CLIENTS, self._args.seconds)
                for _ in range(self._args.rounds)
            ]
            dropped = await deployment.dropped() - before
            cpu = min(self._keep(run, times, dropped=dropped) for run in runs)
            rates.append((statistics.median(run.rate for run in runs) * times, dropped))
            rows.add_row(str(times), f"{rates[-1][0]:,.0f}", f"{cpu:.0f}", f"{dropped:,.0f}")
        self._console.print(rows)
        if limit := drop_limit(rates):
            self._faults.append(f"{name}: {limit}")

    async def by_clients(self, deployment: Deployment) -> None:
        before = await deployment.dropped()
        rows = Table(
            "clients",
            "rolls/s",
            "p99 ms",
            "CPU µs a roll",
            title=f"By clients, {deployment.variant.name}",
            title_justify="left",
        )
        for clients in (8, 64, 256, MANY_CLIENTS):
            runs = [await deployment.run(ROLL, clients, self._args.seconds) for _ in range(self._args.rounds)]
            # Without a delay, more clients than usual exceed what the services accept: some requests are refused.
            cpu = min(self._keep(run, 1, may_fail=clients > self._args.clients) for run in runs)
            p99 = statistics.median(run.p99 for run in runs)
            rate = statistics.median(run.rate for run in runs)
            rows.add_row(str(clients), f"{rate:,.0f}", f"{p99:.0f}", f"{cpu:.0f}")
        self._console.print(rows)
        if dropped := await deployment.dropped() - before:
            self._faults.append(f"single rolls without a delay: {dropped:,.0f} spans or lines were dropped")

    async def by_time(self, deployment: Deployment) -> None:
        await asyncio.sleep(OVERLOAD_PAUSE)
        before = await deployment.dropped()
        minutes = self._args.minutes
        rows = Table(
            "after", "rolls/s", "CPU µs a roll", "MB", title=f"By time, {deployment.variant.name}", title_justify="left"
        )
        slices = max(2, min(12, round(minutes * 6)))
        for number in range(slices):
            run = await deployment.run(ROLL, self._args.clients, minutes * 60 / slices)
            memory = sum(deployment.resident().values())
            cpu = self._keep(run, 1, resident_mb=memory)
            rows.add_row(
                f"{minutes * (number + 1) / slices:.1f} min", f"{run.rate:,.0f}", f"{cpu:.0f}", f"{memory:.0f}"
            )
        self._console.print(rows)
        if dropped := await deployment.dropped() - before:
            self._faults.append(f"{minutes:g} minutes of load: {dropped:,.0f} spans or lines were dropped")


def drop_limit(rates: Sequence[tuple[float, float]]) -> str:
    """A sentence on the rate above which spans and lines are dropped; empty if none were.

    Args:
        rates: rolls a second, and the spans and lines that were dropped at that rate.
    """
    dropping = [(rate, dropped) for rate, dropped in rates if dropped]
    if not dropping:
        return ""
    first = min(rate for rate, _ in dropping)
    below = max((rate for rate, dropped in rates if not dropped and rate < first), default=0.0)
    total_dropped = sum(dropped for _, dropped in dropping)
    return (
        f"spans or lines are dropped from {first:,.0f} rolls/s on, {total_dropped:,.0f} in all;"
        f" up to {below:,.0f} rolls/s none"
    )


class Scraper:
    """Scrapes the dice-roller's metrics while the block runs, with pauses of ``every`` seconds."""

    def __init__(self, deployment: Deployment, every: float) -> None:
        self._lab = deployment.lab
        self._every = every
        self._ending = asyncio.Event()
        self.took: list[float] = []  # milliseconds, of each scrape
        self._counted: list[tuple[float, float]] = []  # seconds since the start, rolls until then

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._scrape())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)  # the first error is the one to report
            return
        self._ending.set()
        await self._task  # waits for the scrape in flight, and raises its error

    def rate(self, after: float) -> float:
        """Rolls a second between the first and the last scrape later than ``after`` seconds since the start."""
        counted = [count for count in self._counted if count[0] > after]
        if len(counted) < 2:
            raise LabError("the dice-roller was too busy to answer two scrapes")
        (first, before), (last, rolls) = counted[0], counted[-1]
        return (rolls - before) / (last - first)

    async def _scrape(self) -> None:
        url = f"{self._lab.url(ROLLER)}/metrics"
        begin = time.monotonic()
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                page = await self._lab.fetch(url, Accept=OPENMETRICS)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                raise LabError(f"the dice-roller did not answer {url}: {error}") from error
            ended = time.monotonic()
            self.took.append((ended - started) * 1000)
            rolls = total(parse_samples(page.text), "roll_requests_total", {"outcome": "success"})
            if not rolls:
                raise LabError("the dice-roller has no roll_requests_total")
            self._counted.append((ended - begin, rolls))
            await sleep(self._every, self._ending)


def _table(title: str, console: Console) -> Table:
    rows = Table(title=f"{title}. {_machine()}", title_justify="left", box=SIMPLE_HEAD)
    rows.add_column("", no_wrap=True)
    for column in ("req/s", "ratio", "by CPU", "p50 ms", "p99 ms", "CPU µs", "roller", "die-s.", "postgres", "MB"):
        rows.add_column(column, justify="right")
    return rows


def _row(rows: Table, name: str, runs: Sequence[Run], bare: Sequence[Run]) -> None:
    """Add the medians of the runs, but the minimum of their CPU time: other work can only increase that."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    least = min(runs, key=lambda run: run.total)
    ratio = statistics.median(run.rate / other.rate for run, other in zip(runs, bare, strict=True))
    rows.add_row(
        name,
        f"{median(lambda run: run.rate):,.0f}",
        f"{ratio:.2f}",
        f"{min(run.total for run in bare) / least.total:.2f}",
        f"{median(lambda run: run.p50):.1f}",
        f"{median(lambda run: run.p99):.1f}",
        f"{least.total:.0f}",
        *(f"{least.cpu.get(process, 0):.0f}" for process in ("dice-roller", "die-service", "postgres")),
        f"{sum(runs[-1].memory.values()):.0f}",
    )
