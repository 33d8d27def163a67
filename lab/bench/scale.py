"""``dicelab bench scale``: rolls with their delay, batches, many clients, and a lab over time."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import aiohttp
from rich.console import Console
from rich.table import Table

from lab import LabError, error_text
from lab.bench.options import Options
from lab.bench.testbed import Deployment, Run, Testbed
from lab.bench.variants import BARE, BATCH_CLIENTS, FILES, ROLL
from lab.client import ROLLER
from lab.signals import OPENMETRICS, parse_samples, total
from lab.supervise.plan import TELEMETRY
from lab.waiting import sleep

MANY_CLIENTS = 1000  # clients that roll with the real delay
SUSTAINED_SHARE = 0.98  # of the possible rolls; from this share on the services keep up with the clients
BATCHES = (1, 2, 5, 10, 20, 50, 100)  # rolls
OVERLOAD_PAUSE = 3.0  # seconds to recover from more clients than the services accept


async def measure_scale(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    """Load with the real delay, in batches, with many clients, and over time.

    Prints tables, adds what went wrong to ``faults``, and returns the runs as ``--json`` writes them.
    """
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
        rolls = await deployment.rolls()
        async with Scraper(deployment, every=args.seconds / 3) as scraper:
            run = await deployment.run(ROLL, clients, args.seconds * 10)
        # The burst at the start and the rolls in flight at the end distort the load generator's rate, so the sustained
        # rate comes from the dice-roller's counter.
        rate = sustained_rate(scraper.counted, after=args.seconds)
        scrapes = scraper.took
        dropped = await deployment.dropped() - before
        counted = await deployment.rolls() - rolls
        self._keep(run, 1, scrape_ms=max(scrapes), sustained=round(rate, 1), counted=counted, dropped=dropped)
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


def sustained_rate(counted: Sequence[tuple[float, float]], after: float) -> float:
    """Rolls a second between the first and the last scrape later than ``after`` seconds since the start.

    Args:
        counted: see :class:`Scraper`.

    Raises:
        LabError: when there are fewer than two such scrapes.
    """
    later = [count for count in counted if count[0] > after]
    if len(later) < 2:
        raise LabError("the dice-roller was too busy to answer two scrapes")
    (first, before), (last, rolls) = later[0], later[-1]
    return (rolls - before) / (last - first)


class Scraper:
    """Scrapes the dice-roller's metrics while the block runs, with pauses of ``every`` seconds.

    Attributes:
        took: milliseconds, of each scrape.
        counted: of each scrape, the seconds since the start and the rolls until then.
    """

    def __init__(self, deployment: Deployment, every: float) -> None:
        self._lab = deployment.lab
        self._every = every
        self._ending = asyncio.Event()
        self.took: list[float] = []
        self.counted: list[tuple[float, float]] = []

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

    async def _scrape(self) -> None:
        url = f"{self._lab.url(ROLLER)}/metrics"
        begin = time.monotonic()
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                page = await self._lab.fetch(url, Accept=OPENMETRICS)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                raise LabError(f"the dice-roller did not answer {url}: {error_text(error)}") from error
            ended = time.monotonic()
            self.took.append((ended - started) * 1000)
            rolls = total(parse_samples(page.text), "roll_requests_total", {"outcome": "success"})
            if not rolls:
                raise LabError("the dice-roller has no roll_requests_total")
            self.counted.append((ended - begin, rolls))
            await sleep(self._every, self._ending)
