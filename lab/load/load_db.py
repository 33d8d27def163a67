"""``dicelab load-db``: queries the die-service at a constant rate, and reports whether its database keeps up."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
from rich.console import Console

from lab import LabError, error_text, telemetry
from lab.client import DIE_SERVICE, Lab
from lab.load import generator
from lab.load.generator import Client, Record, summarized
from lab.load.report import show_failures, show_latency
from lab.signals import Sample, total
from lab.terminal import progress, say
from lab.waiting import stop_signal
from otel import logs

SAMPLE_INTERVAL = 0.25  # seconds between two samples of the pool
REACHED = 0.97  # the target counts as reached from this share of its rate on
BUSY = 0.9  # of a core; a process that uses more is the bottleneck
FULL = 0.5  # the pool is the bottleneck if all its connections are in use in this share of the samples
LATE = 0.5  # seconds; this process is the bottleneck if requests start later than this
POOL_SIZE, POOL_AVAILABLE = "database_connection_pool_size", "database_connection_pool_available"

_log = logs.events(telemetry.SERVICE)


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        url: the URL of a die-service; ``None`` for that of the lab in the run dir.
        rate: queries a second.
        duration: in seconds.
        ratio: queries for the list of dice to queries for a single die.
        timeout: seconds for one request.
    """

    run_dir: Path
    url: str | None
    rate: float
    duration: float
    ratio: tuple[float, float]
    seed: int | None
    timeout: float
    json: bool


@dataclass
class Pool:
    """Samples of the connection pool, and what the die-service counted during the load."""

    size: list[float] = field(default_factory=list)
    available: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0  # of the die-service
    queries: dict[str, float] = field(default_factory=dict)  # by result

    @property
    def in_use(self) -> list[float]:
        return [size - free for size, free in zip(self.size, self.available, strict=True)]


@asynccontextmanager
async def _sampled(lab: Lab) -> AsyncIterator[Pool]:
    """Sample the pool while the block runs; the counts are complete after it."""
    pool = Pool()
    before = await _fetch_samples(lab)

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            try:
                now = await lab.fetch_samples(DIE_SERVICE)
            except (aiohttp.ClientError, asyncio.TimeoutError):
                continue
            pool.size.append(total(now, POOL_SIZE))
            pool.available.append(total(now, POOL_AVAILABLE))

    task = asyncio.ensure_future(sample())
    try:
        yield pool
    finally:
        task.cancel()
    after = await _fetch_samples(lab)
    pool.cpu_seconds = _growth(before, after, "process_cpu_seconds_total")
    for result in ("success", "error"):
        pool.queries[result] = _growth(before, after, "database_queries_total", result=result)


async def _fetch_samples(lab: Lab) -> list[Sample]:
    try:
        return await lab.fetch_samples(DIE_SERVICE)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LabError(f"{lab.url(DIE_SERVICE)} does not answer: {error_text(error)}") from None


def _growth(before: list[Sample], after: list[Sample], name: str, **labels: str) -> float:
    return total(after, name, labels) - total(before, name, labels)


async def _run(options: Options, lab: Lab) -> dict[str, Any]:
    url = lab.url(DIE_SERVICE)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    chance = random.Random(seed)
    record = Record()
    async with lab, Client(options.timeout, traced=False) as client, stop_signal() as stop:
        names = await _dice(lab)
        lists, gets = options.ratio
        _log(logging.INFO, "Database load started", url=url, rate=options.rate, duration=options.duration, seed=seed)

        async def ask(number: int, due: float) -> None:
            query = None if chance.random() < lists / (lists + gets) else {"identifier": chance.choice(names)}
            record.add(await client.ask(url, "/dice", query, due=due))

        beginning = time.monotonic()
        own_cpu = time.process_time()
        async with (
            progress(
                "load-db",
                lambda: f"{record.requests} queries, {record.failures} failed",
                lambda: min(1.0, (time.monotonic() - beginning) / options.duration),
            ),
            _sampled(lab) as pool,
        ):
            due = generator.arrivals(options.rate, options.duration, generator.PROFILES["steady"])
            late = await generator.open_loop(due, ask, stop, record)
            seconds = time.monotonic() - beginning
            own_cpu = time.process_time() - own_cpu
    succeeded = record.requests - record.failures
    # Up to the last response: a lab that falls behind takes longer than the duration.
    achieved = succeeded / (seconds if stop.is_set() else max(seconds, options.duration))
    summary: dict[str, Any] = {
        "url": url,
        "seed": seed,
        "interrupted": stop.is_set(),
        "target_per_second": options.rate,
        "achieved_per_second": round(achieved, 2),
        "seconds": round(seconds, 3),
        "queries": record.requests,
        "failed": record.failures,
        "not_sent": record.not_sent,
        "late_seconds": round(late, 3),
        "statuses": dict(sorted(record.statuses.items())),
        "latency_ms": {"counted": "is measured from the time each query was due", **record.latencies.summary()},
        "pool": {
            "size": max(pool.size, default=None),
            "in_use_mean": round(fmean(pool.in_use), 2) if pool.size else None,
            "in_use_max": max(pool.in_use, default=None),
            "full_share": round(sum(free == 0 for free in pool.available) / len(pool.size), 3) if pool.size else None,
        },
        "database_queries": pool.queries,
        "cpu_share": {"die-service": round(pool.cpu_seconds / seconds, 3), "this": round(own_cpu / seconds, 3)},
        "failures": summarized(record.failed),
    }
    summary["reached"] = achieved >= REACHED * options.rate
    summary["why_not"] = [] if summary["reached"] else _why_not(summary)
    _log(logging.INFO, "Database load done", achieved=summary["achieved_per_second"], failed=record.failures)
    return summary


def _why_not(summary: dict[str, Any]) -> list[str]:
    """The reasons why the load stayed below its target, as far as this process can tell."""
    reasons = []
    if summary["interrupted"]:
        reasons.append("it was interrupted")
    if summary["late_seconds"] > LATE:
        reasons.append(
            f"this command could not send faster: queries started up to {summary['late_seconds']:.1f} s late, and it"
            f" used {summary['cpu_share']['this']:.0%} of a core"
        )
    if summary["not_sent"]:
        reasons.append(f"{summary['not_sent']} were not sent: {generator.MAX_UNDER_WAY} requests were in flight")
    if summary["failed"]:
        statuses = ", ".join(
            f"{count} with {status}" for status, count in summary["statuses"].items() if status != "200"
        )
        reasons.append(f"{summary['failed']} of {summary['queries']} failed: {statuses}")
    if (summary["pool"]["full_share"] or 0) >= FULL:
        reasons.append(
            f"all {summary['pool']['size']:.0f} connections were in use in {summary['pool']['full_share']:.0%} of the"
            " samples; DB_POOL_SIZE sets how many there are"
        )
    if summary["cpu_share"]["die-service"] >= BUSY:
        reasons.append(f"the die-service used {summary['cpu_share']['die-service']:.0%} of a core; it has one")
    return reasons or ["responses were slower than the target rate; neither the pool nor a process was saturated"]


async def _dice(lab: Lab) -> list[str]:
    """The names of the dice.

    Raises:
        LabError: when the service is not a die-service with a database.
    """
    url = lab.url(DIE_SERVICE)
    try:
        names = (await lab.fetch(f"{url}/dice")).json["identifiers"]
        if not names:
            raise LabError(f"the die-service at {url} has no dice to query")
        if not any(sample.name == POOL_SIZE for sample in await lab.fetch_samples(DIE_SERVICE)):
            raise LabError(f"the die-service at {url} has no database; stages 5 and 6 have")
        return [str(name) for name in names]
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LabError(f"{url} does not answer: {error_text(error)}") from None
    except (ValueError, KeyError, TypeError):
        raise LabError(f"{url} is not a working die-service: its /dice returns no list") from None


def _show(summary: dict[str, Any], console: Console) -> None:
    say(
        console,
        f"{summary['queries']} queries in {summary['seconds']:.1f} s, {summary['failed']} failed,"
        f" seed {summary['seed']}",
    )
    show_latency(summary["latency_ms"], console)
    pool = summary["pool"]
    if pool["size"] is not None:
        say(
            console,
            f"Pool: {pool['size']:.0f} connections, {pool['in_use_mean']:.1f} in use on average,"
            f" {pool['in_use_max']:.0f} at most; none free in {pool['full_share']:.0%} of the samples",
        )
    shares = summary["cpu_share"]
    say(console, f"CPU: die-service {shares['die-service']:.0%} of a core, this command {shares['this']:.0%}")
    show_failures(summary["failures"], summary["failed"], console)
    verdict = "reached" if summary["reached"] else "not reached"
    say(
        console,
        f"Target of {summary['target_per_second']:g} queries/s {verdict}: {summary['achieved_per_second']:g}/s",
        "bold" if summary["reached"] else "bold red",
    )
    for reason in summary["why_not"]:
        say(console, f"  because {reason}", "red")


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 if the target was reached, else 1."""
    lab = Lab.find(options.run_dir, options.url)
    lab.timeout = options.timeout
    url = options.url or lab.services.get(DIE_SERVICE)
    if url is None:
        raise LabError(f"stage {lab.stage} has no die-service, nor a database behind it; stage 5 has")
    lab.services = {**lab.services, DIE_SERVICE: url}
    with telemetry.recorded(lab):
        summary = asyncio.run(_run(options, lab))
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if summary["reached"] else 1
