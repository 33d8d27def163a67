"""``dicelab bench``: what telemetry costs, measured against the same services without any.

All variants run side by side, idle but for the one that is under load; each round goes through all of them in another
order, and a ratio is that of two runs of the same round. So whatever else the machine does meets all alike. The most
telling figure is the CPU a request takes: it hardly depends on what else runs.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lab import LabError
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.processes import Process, schedule_batch

READY_TIMEOUT = 60.0  # seconds
TABLE_WIDTH = 120  # columns
TICK = 1 / os.sysconf("SC_CLK_TCK")
HEAVY_SPANS = {"TRACES_FILE_MAX_BYTES": str(2**30), "TRACES_FILE_BACKUPS": "1"}
NO_TRACES = {"OTEL_SDK_DISABLED": "true"}
NO_LOGS = {"LOG_LEVEL": "CRITICAL"}


@dataclass(frozen=True)
class Variant:
    """One way to run the dice-roller and the die-service."""

    name: str
    command: tuple[str, ...]  # what Python runs, {} standing for roller or dieservice
    variables: dict[str, str] = field(default_factory=dict)
    collector: bool = False  # spans go to a collector over OTLP/HTTP, not to a file


SERVICE = ("-m", "{}")
REFERENCE = ("-m", "bench.reference", "{}")
WITHOUT_METRICS = ("-m", "bench.service", "{}")
ALL = Variant("all", SERVICE)
BARE = Variant("no telemetry", REFERENCE)
SIGNALS = (
    BARE,
    Variant("no telemetry, asyncio loop", REFERENCE, {"EVENT_LOOP": "asyncio"}),
    Variant("metrics alone", SERVICE, NO_TRACES | NO_LOGS),
    Variant("logs alone", WITHOUT_METRICS, NO_TRACES),
    Variant("traces alone", WITHOUT_METRICS, NO_LOGS),
    Variant("traces, not exported", WITHOUT_METRICS, NO_LOGS | {"OTEL_TRACES_EXPORTER": "none"}),
    ALL,
    Variant("all, over OTLP/HTTP", SERVICE, {}, collector=True),
    Variant("all, asyncio loop", SERVICE, {"EVENT_LOOP": "asyncio"}),
)
ROLL = "/roll?die=fair"
PATHS = (
    ROLL,
    *(f"/roll-async?die=fair&times={times}" for times in (1, 10, 100)),
    "/dice?identifier=fair",  # asked of the die-service itself
)


CROWD = 1000  # clients that roll with the real delay
OVERLOAD_PAUSE = 3.0  # seconds to get over more clients than there is room for


@dataclass
class Run:
    """One load on one variant; times in milliseconds, CPU in microseconds a request."""

    variant: str
    path: str
    clients: int
    requests: int
    rate: float  # a second
    p50: float
    p99: float
    cpu: dict[str, float]  # by process
    failed: int
    memory: dict[str, float] = field(default_factory=dict)  # the most each process had, in MB

    @property
    def total(self) -> float:
        return sum(self.cpu.values())


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        what: of ``signals``, ``paths`` and ``scale``; empty for the first two.
        rounds: how often each variant is measured.
        seconds: how long each time.
        clients: connections.
        minutes: how long ``scale`` watches a lab.
        json: the file that every run is written to; ``-`` is stdout.
    """

    what: tuple[str, ...]
    rounds: int
    seconds: float
    clients: int
    minutes: float
    json: Path | None


def run(args: Options, console: Console) -> int:
    """Measure and print; exit status 1 when a request failed or a span or line was dropped."""
    unknown = set(args.what) - {"signals", "paths", "scale"}
    if unknown:
        raise LabError(f"bench knows signals, paths and scale, not {', '.join(sorted(unknown))}")
    if args.json == Path("-"):
        console = Console(stderr=True)
    console.width = max(console.width, TABLE_WIDTH)  # a figure that is cut off says nothing
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind, as Ctrl-C
    schedule_batch()  # as `dicelab up` does
    directory = Path(tempfile.mkdtemp(prefix="dicelab-bench-"))
    postgres = EmbeddedPostgres(directory / "postgres")
    try:
        url = os.environ.get("DATABASE_URL", "")
        if not url:
            postgres.start()
            url = postgres.url
        return asyncio.run(_bench(args, console, Bed(directory, url, postgres.pid)))
    except KeyboardInterrupt:
        raise LabError("stopped before all was measured") from None
    finally:
        postgres.close()
        shutil.rmtree(directory, ignore_errors=True)


async def _bench(args: Options, console: Console, bed: Bed) -> int:
    document: dict[str, Any] = {"machine": _machine(), "load": "wrk" if shutil.which("wrk") else "bench.load"}
    faults: list[str] = []
    for part in dict.fromkeys(args.what or ("signals", "paths")):
        measure = {"signals": _signals, "paths": _paths, "scale": _scale}[part]
        document[part] = await measure(args, console, bed, faults)
    for fault in faults:
        console.print(fault, style="bold red", soft_wrap=True)
    if args.json:
        text = json.dumps(document | {"faults": faults}, indent=1)
        print(text) if args.json == Path("-") else args.json.write_text(text + "\n")
    return 1 if faults else 0


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


# --- what runs ---


class Bed:
    """Where variants run: a directory, a database, free ports."""

    def __init__(self, directory: Path, database: str, postgres_pid: int | None) -> None:
        self.directory = directory
        self.database = database
        self.postgres_pid = postgres_pid
        self._given: set[int] = set()

    def free_port(self) -> int:
        """One that was not given before, below those of outgoing connections, of which a load makes thousands."""
        while True:
            port = random.randrange(15_000, 32_000)
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                if port not in self._given:
                    self._given.add(port)
                    return port


class Running:
    """A variant under way, to be entered and left."""

    def __init__(self, bed: Bed, variant: Variant, **variables: str) -> None:
        self.variant = variant
        self._bed = bed
        self._variables = variant.variables | variables
        self._directory = Path(tempfile.mkdtemp(dir=bed.directory))
        self._processes: dict[str, Process] = {}
        self._ports = {name: bed.free_port() for name in ("dice-roller", "die-service", "collector")}

    async def __aenter__(self) -> Running:
        try:
            if self.variant.collector:
                await self._start("collector", ("-m", "bench.collector", str(self._ports["collector"])), {})
            for name, module in (("die-service", "dieservice"), ("dice-roller", "roller")):
                await self._start(name, [part.format(module) for part in self.variant.command], self._settings(name))
            for name in ("die-service", "dice-roller"):
                await self._ready(name)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
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
            "PORT": str(self._ports[name]),
            "DICE_SOURCE": "die-service",
            "DICE_STORE": "postgres",
            "ASYNC_ROLLS": "true",
            "ROLL_DELAY": "0",
            "DATABASE_URL": self._bed.database,
            "DIE_SERVICE_URL": f"http://127.0.0.1:{self._ports['die-service']}",
        }
        if self.variant.collector:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{self._ports['collector']}"
        else:
            settings |= HEAVY_SPANS | {"TRACES_FILE": str(self._directory / f"{name}.spans")}
        return settings | self._variables

    def url(self, path: str) -> str:
        service = "die-service" if path.startswith("/dice") else "dice-roller"
        return f"http://127.0.0.1:{self._ports[service]}{path}"

    async def _ready(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{self._ports[name]}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                self._check_running()
                if loop.time() > deadline:
                    raise LabError(f"the {name} of {self.variant.name!r} is not ready")
                await asyncio.sleep(0.05)

    def _check_running(self) -> None:
        for name, process in self._processes.items():
            if not process.running:
                said = "\n".join(process.last_lines())
                raise LabError(f"the {name} of {self.variant.name!r} has ended: {said}")

    def pids(self) -> dict[str, list[int]]:
        pids = {name: [process.pid] for name, process in self._processes.items()}
        pids["this command"] = [os.getpid()]  # it writes the lines to files, as `dicelab up` does
        if self._bed.postgres_pid is not None:
            pids["postgres"] = [self._bed.postgres_pid, *_children(self._bed.postgres_pid)]
        return pids

    def memory(self) -> dict[str, float]:
        """The most memory each process had so far, in MB."""
        return {name: _status(process.pid, "VmHWM") for name, process in self._processes.items()}

    def resident(self) -> dict[str, float]:
        """The memory each process has now, in MB."""
        return {name: _status(process.pid, "VmRSS") for name, process in self._processes.items()}

    async def dropped(self) -> float:
        """Spans and lines that were dropped; 0 where there is no telemetry."""
        if self.variant.command == REFERENCE:
            return 0.0
        async with aiohttp.ClientSession() as session:
            total = 0.0
            for name in ("die-service", "dice-roller"):
                async with session.get(f"http://127.0.0.1:{self._ports[name]}/metrics") as answer:
                    found = re.findall(r"^telemetry_dropped_total\{.*\} (\S+)", await answer.text(), re.MULTILINE)
                if not found:
                    raise LabError(f"the {name} does not say what it dropped")
                total += sum(map(float, found))
        return total

    async def run(self, path: str, clients: int, seconds: float) -> Run:
        before = {name: {pid: _cpu(pid) for pid in group} for name, group in self.pids().items()}
        try:
            result = await load(self.url(path), clients, seconds)
        finally:
            self._check_running()  # says more than a load that found nobody
        requests = int(result["requests"])
        if not requests:
            raise LabError(f"no request to {path} was answered in {seconds:g} s")
        cpu = {
            # A process that has ended meanwhile says nothing any more; PostgreSQL's come and go.
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
    """Load a URL; ``requests``, ``seconds``, ``failed``, and ``p50`` and ``p99`` in milliseconds."""
    if shutil.which("wrk"):
        duration = f"-d{max(1, round(seconds))}s"
        # wrk gives up on an answer after 2 s, which many clients at once may well wait for.
        return read_wrk(await _output("wrk", "-t1", f"-c{clients}", duration, "--timeout", "10s", "--latency", url))
    found: dict[str, float] = json.loads(
        await _output(sys.executable, "-m", "bench.load", url, str(clients), str(seconds))
    )
    return found


def read_wrk(out: str) -> dict[str, float]:
    """What ``wrk --latency`` has printed, as :func:`load` has it."""
    count = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", out)
    if count is None:
        raise LabError(f"wrk said: {out}")
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
    """Seconds of CPU that a process has used, in the kernel too; 0 for one that has ended."""
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
    """Our environment without anything that would set up a service otherwise."""
    drop = re.compile(r"OTEL_|DATABASE_URL|ROLL_|TRACES_|DB_|DIE_SERVICE_|LOG_LEVEL|RANDOM_SEED|EVENT_LOOP|PORT$|HOST$")
    return {name: value for name, value in os.environ.items() if not drop.match(name)}


# --- what is measured ---


async def _signals(args: Options, console: Console, bed: Bed, faults: list[str]) -> list[dict[str, Any]]:
    runs = await _rounds(bed, SIGNALS, (ROLL,), args, faults)
    rows = _table(f"{ROLL}, {args.clients} clients, {args.rounds} rounds of {args.seconds:g} s", console)
    for variant in SIGNALS:
        _row(rows, variant.name, runs[variant.name, ROLL], runs[BARE.name, ROLL])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def _paths(args: Options, console: Console, bed: Bed, faults: list[str]) -> list[dict[str, Any]]:
    runs = await _rounds(bed, (BARE, ALL), PATHS, args, faults)
    rows = _table(f"All three signals against none, {args.clients} clients", console)
    for path in PATHS:
        rows.add_row(path, style="bold")
        for variant in (BARE, ALL):
            _row(rows, f"  {variant.name}", runs[variant.name, path], runs[BARE.name, path])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def _rounds(
    bed: Bed, variants: Sequence[Variant], paths: Sequence[str], args: Options, faults: list[str]
) -> dict[tuple[str, str], list[Run]]:
    """The runs of each variant and path, one a round."""
    runs: dict[tuple[str, str], list[Run]] = {(variant.name, path): [] for variant in variants for path in paths}
    shuffled = random.Random(0)
    running = [Running(bed, variant) for variant in variants]
    try:
        await asyncio.gather(*(one.__aenter__() for one in running))
        for one in running:  # their first requests make connections and caches
            for path in paths:
                await one.run(path, args.clients, min(1, args.seconds))
        for _ in range(args.rounds):
            for path in paths:
                for one in shuffled.sample(running, len(running)):
                    run = await one.run(path, args.clients, args.seconds)
                    runs[one.variant.name, path].append(run)
                    if run.failed:
                        faults.append(f"{one.variant.name}: {run.failed} requests to {path} failed")
        for one in running:
            if dropped := await one.dropped():
                faults.append(f"{one.variant.name}: {dropped:g} spans or lines were dropped")
            for path in paths:
                for run in runs[one.variant.name, path]:
                    run.memory = one.memory()
    finally:
        for one in running:
            await one.__aexit__()
    return runs


async def _scale(args: Options, console: Console, bed: Bed, faults: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def keep(run: Run, rolls: int, room: bool = True, **more: float) -> float:
        """Note a run, whose requests may fail where there is no room for them; returns a roll's CPU in µs."""
        if run.failed and room:
            faults.append(f"{run.failed} requests to {run.path} from {run.clients} clients failed")
        found.append(asdict(run) | {"rolls": rolls} | more)
        return run.total / rolls

    async with Running(bed, ALL, ROLL_DELAY="1") as running:
        await running.run(ROLL, CROWD, 2)
        async with Scraping(running, every=args.seconds / 3) as scraping:
            run = await running.run(ROLL, CROWD, args.seconds * 10)
        # They all come at once at first, and the rolls that are under way at the end are nobody's: what goes on in
        # between is counted by the dice-roller.
        rate = scraping.rate(after=args.seconds)
        scrapes = scraping.took
        keep(run, 1, scrape_ms=max(scrapes), sustained=round(rate, 1))
        ideal = CROWD / 0.5
        console.print(
            f"{CROWD} clients, each roll with its delay of up to 1 s: {rate:,.0f} rolls/s once all are under way,"
            f" {rate / ideal:.1%} of the {ideal:,.0f} that are possible, and {run.rate:,.0f} from the first rush to the"
            f" end; {run.total:.0f} µs of CPU a roll."
            f" /metrics meanwhile: {statistics.median(scrapes):.1f} ms, at most {max(scrapes):.1f} ms,"
            f" asked {len(scrapes)} times.",
            soft_wrap=True,
        )
        if dropped := await running.dropped():
            faults.append(f"{dropped:g} spans or lines were dropped")

    async with Running(bed, ALL) as running:
        await running.run(ROLL, args.clients, 1)
        rows = Table("rolls in a batch", "rolls/s", "CPU µs a roll", title="By batch size", title_justify="left")
        for times in (1, 2, 5, 10, 20, 50, 100):
            runs = [
                await running.run(f"/roll-async?die=fair&times={times}", 16, args.seconds) for _ in range(args.rounds)
            ]
            cpu = min(keep(run, times) for run in runs)
            rows.add_row(str(times), f"{statistics.median(run.rate for run in runs) * times:,.0f}", f"{cpu:.0f}")
        console.print(rows)

        rows = Table("clients", "rolls/s", "p99 ms", "CPU µs a roll", title="By clients", title_justify="left")
        for clients in (8, 64, 256, CROWD):
            runs = [await running.run(ROLL, clients, args.seconds) for _ in range(args.rounds)]
            # Without a delay more clients than those are more than there is room for, and some are refused.
            cpu = min(keep(run, 1, room=clients <= args.clients) for run in runs)
            p99 = statistics.median(run.p99 for run in runs)
            rows.add_row(
                str(clients), f"{statistics.median(run.rate for run in runs):,.0f}", f"{p99:.0f}", f"{cpu:.0f}"
            )
        console.print(rows)

        rows = Table("after", "rolls/s", "CPU µs a roll", "MB", title="By time", title_justify="left")
        await asyncio.sleep(OVERLOAD_PAUSE)
        slices = max(2, min(12, round(args.minutes * 6)))
        for number in range(slices):
            run = await running.run(ROLL, args.clients, args.minutes * 60 / slices)
            memory = sum(running.resident().values())
            cpu = keep(run, 1, resident_mb=memory)
            rows.add_row(
                f"{args.minutes * (number + 1) / slices:.1f} min", f"{run.rate:,.0f}", f"{cpu:.0f}", f"{memory:.0f}"
            )
        console.print(rows)
        if dropped := await running.dropped():
            faults.append(f"{dropped:g} spans or lines were dropped")
    return found


class Scraping:
    """Asks the dice-roller for its metrics while it is entered, pausing for ``every`` seconds."""

    def __init__(self, running: Running, every: float) -> None:
        self._url = running.url("/metrics")
        self._every = every
        self._ending = asyncio.Event()
        self.took: list[float] = []  # milliseconds, of each
        self._counted: list[tuple[float, float]] = []  # seconds since the start, rolls until then

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)  # what ended the run is said, not what followed
            return
        self._ending.set()
        await self._task  # the answer under way counts; an error would leave figures of a part of the time only

    def rate(self, after: float) -> float:
        """Rolls a second between the first and the last that was asked more than ``after`` seconds since the start."""
        counted = [count for count in self._counted if count[0] > after]
        if len(counted) < 2:
            raise LabError("the dice-roller was too busy to say what it counted")
        (first, before), (last, rolls) = counted[0], counted[-1]
        return (rolls - before) / (last - first)

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with aiohttp.ClientSession() as session:
            while not self._ending.is_set():
                started = loop.time()
                try:
                    async with session.get(self._url) as answer:
                        page = await answer.text()
                except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                    raise LabError(f"the dice-roller did not answer {self._url}: {error}") from error
                ended = loop.time()
                self.took.append((ended - started) * 1000)
                rolls = re.search(r'^roll_requests_total\{outcome="success"\} (\S+)$', page, re.MULTILINE)
                if rolls is None:
                    raise LabError("the dice-roller does not say how many rolls it made")
                self._counted.append((ended - begin, float(rolls[1])))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), self._every)


def _table(title: str, console: Console) -> Table:
    rows = Table(title=f"{title}. {_machine()}", title_justify="left", box=SIMPLE_HEAD)
    rows.add_column("", no_wrap=True)
    for column in ("req/s", "ratio", "p50 ms", "p99 ms", "CPU µs", "roller", "die-s.", "postgres", "MB"):
        rows.add_column(column, justify="right")
    return rows


def _row(rows: Table, name: str, runs: Sequence[Run], bare: Sequence[Run]) -> None:
    """Medians of the runs; of the CPU the least, because others' work can only add to it."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    least = min(runs, key=lambda run: run.total)
    ratio = statistics.median(run.rate / other.rate for run, other in zip(runs, bare, strict=True))
    rows.add_row(
        name,
        f"{median(lambda run: run.rate):,.0f}",
        f"{ratio:.2f}",
        f"{median(lambda run: run.p50):.1f}",
        f"{median(lambda run: run.p99):.1f}",
        f"{least.total:.0f}",
        *(f"{least.cpu.get(process, 0):.0f}" for process in ("dice-roller", "die-service", "postgres")),
        f"{sum(runs[-1].memory.values()):.0f}",
    )
