"""``dicelab load-db``: queries at a rate against the die-service, and whether its database kept up."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from lab import LabError
from lab import client as running
from lab.load import generator as load
from lab.load.generator import Client, Record
from lab.load.traffic import SHOWN, show_latency
from otel import logs

SAMPLE_INTERVAL = 0.25  # seconds between two looks at the pool
REACHED = 0.97  # of the target, from which on it counts as reached
BUSY = 0.9  # of a core, from which on a process is the bottleneck
FULL = 0.5  # of the looks at the pool, from which on the pool is
LATE = 0.5  # seconds that requests start late, from which on this process is the bottleneck

_line = logs.events(running.SERVICE)


@dataclass
class Pool:
    """What was seen of the pool, and of the die-service besides."""

    size: list[float] = field(default_factory=list)
    available: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0  # of the die-service
    queries: dict[str, float] = field(default_factory=dict)  # by result

    @property
    def in_use(self) -> list[float]:
        return [size - free for size, free in zip(self.size, self.available, strict=True)]


async def _figures(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = f"{sample.name} {sample.labels['result']}" if "result" in sample.labels else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


@asynccontextmanager
async def _watched(session: aiohttp.ClientSession, url: str) -> AsyncIterator[Pool]:
    """The pool, looked at all through the block; what counts up is complete after it."""
    pool = Pool()
    before = await _figures(session, url)

    async def look() -> None:
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            try:
                now = await _figures(session, url)
            except (aiohttp.ClientError, asyncio.TimeoutError):
                continue
            pool.size.append(now["database_connection_pool_size"])
            pool.available.append(now["database_connection_pool_available"])

    task = asyncio.ensure_future(look())
    try:
        yield pool
    finally:
        task.cancel()
    after = await _figures(session, url)
    pool.cpu_seconds = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    for result in ("success", "error"):
        name = f"database_queries_total {result}"
        pool.queries[result] = after[name] - before[name]


async def _run(args: argparse.Namespace, url: str) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    chance = random.Random(seed)
    record = Record()
    async with Client(args.timeout, traced=False) as client, load.stoppable() as stop:
        session = client.session
        names = await _dice(session, url)
        lists, gets = args.ratio
        _line(logging.INFO, "Database load started", url=url, rate=args.rate, duration=args.duration, seed=seed)

        async def ask(number: int, due: float) -> None:
            query = None if chance.random() < lists / (lists + gets) else {"identifier": chance.choice(names)}
            record.add(await client.ask(url, "/dice", query, due=due))

        beginning = time.monotonic()
        own_cpu = time.process_time()
        async with (
            load.shown(
                "load-db",
                lambda: f"{record.requests} queries, {record.failures} failed",
                lambda: min(1.0, (time.monotonic() - beginning) / args.duration),
            ),
            _watched(session, url) as pool,
        ):
            due = load.arrivals(args.rate, args.duration, load.PROFILES["steady"])
            late = await load.open_loop(due, ask, stop, record)
            seconds = time.monotonic() - beginning
            own_cpu = time.process_time() - own_cpu
    succeeded = record.requests - record.failures
    # Until the last answer: a lab that falls behind takes longer than was given.
    achieved = succeeded / (seconds if stop.is_set() else max(seconds, args.duration))
    summary: dict[str, Any] = {
        "url": url,
        "seed": seed,
        "interrupted": stop.is_set(),
        "target_per_second": args.rate,
        "achieved_per_second": round(achieved, 2),
        "seconds": round(seconds, 3),
        "queries": record.requests,
        "failed": record.failures,
        "not_sent": record.not_sent,
        "late_seconds": round(late, 3),
        "statuses": dict(sorted(record.statuses.items())),
        "latency_ms": {"counted": "is measured from when each query was due", **load.percentiles(record.histogram)},
        "pool": {
            "size": max(pool.size, default=None),
            "in_use_mean": round(fmean(pool.in_use), 2) if pool.size else None,
            "in_use_max": max(pool.in_use, default=None),
            "full_share": round(sum(free == 0 for free in pool.available) / len(pool.size), 3) if pool.size else None,
        },
        "database_queries": pool.queries,
        "cpu_share": {"die-service": round(pool.cpu_seconds / seconds, 3), "this": round(own_cpu / seconds, 3)},
        "failures": load.told(record.failed),
    }
    summary["reached"] = achieved >= REACHED * args.rate
    summary["why_not"] = [] if summary["reached"] else _why_not(summary)
    _line(logging.INFO, "Database load done", achieved=summary["achieved_per_second"], failed=record.failures)
    return summary


def _why_not(summary: dict[str, Any]) -> list[str]:
    """What kept the load below its target, as far as can be seen from here."""
    reasons = []
    if summary["interrupted"]:
        reasons.append("it was interrupted")
    if summary["late_seconds"] > LATE:
        reasons.append(
            f"this command could not send faster: queries started up to {summary['late_seconds']:.1f} s late, and it"
            f" used {summary['cpu_share']['this']:.0%} of a core"
        )
    if summary["not_sent"]:
        reasons.append(f"{summary['not_sent']} were not sent: {load.MAX_UNDER_WAY} were under way already")
    if summary["failed"]:
        said = ", ".join(f"{count} with {status}" for status, count in summary["statuses"].items() if status != "200")
        reasons.append(f"{summary['failed']} of {summary['queries']} failed: {said}")
    if (summary["pool"]["full_share"] or 0) >= FULL:
        reasons.append(
            f"all {summary['pool']['size']:.0f} connections were in use in {summary['pool']['full_share']:.0%} of the"
            " looks at the pool; DB_POOL_SIZE sets how many there are"
        )
    if summary["cpu_share"]["die-service"] >= BUSY:
        reasons.append(f"the die-service used {summary['cpu_share']['die-service']:.0%} of a core; it has one")
    return reasons or ["answers came more slowly than queries were due; neither the pool nor a process was full"]


async def _dice(session: aiohttp.ClientSession, url: str) -> list[str]:
    """The dice there are.

    Raises:
        LabError: when that is no die-service with a database.
    """
    try:
        async with session.get(f"{url}/dice") as response:
            names = (await response.json(content_type=None))["identifiers"]
        if not names:
            raise LabError(f"the die-service at {url} has no dice to ask for")
        if "database_connection_pool_size" not in await _figures(session, url):
            raise LabError(f"the die-service at {url} has no database; stages 5 and 6 have")
        return [str(name) for name in names]
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LabError(f"{url} does not answer: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        raise LabError(f"{url} is no die-service that can serve: its /dice answers with no list") from None


def _show(summary: dict[str, Any], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{summary['queries']} queries in {summary['seconds']:.1f} s, {summary['failed']} failed,"
        f" seed {summary['seed']}"
    )
    show_latency(summary["latency_ms"], console)
    pool = summary["pool"]
    if pool["size"] is not None:
        say(
            f"Pool: {pool['size']:.0f} connections, {pool['in_use_mean']:.1f} in use on average,"
            f" {pool['in_use_max']:.0f} at the most; none free in {pool['full_share']:.0%} of the looks"
        )
    shares = summary["cpu_share"]
    say(f"CPU: die-service {shares['die-service']:.0%} of a core, this command {shares['this']:.0%}")
    for answer in summary["failures"][-SHOWN:]:
        say(f"failed {answer['ms']:9.1f} ms  {answer['status']:>4}  {answer['trace_id']}")
    verdict = "reached" if summary["reached"] else "not reached"
    say(
        f"Target of {summary['target_per_second']:g} queries/s {verdict}: {summary['achieved_per_second']:g}/s",
        "bold" if summary["reached"] else "bold red",
    )
    for reason in summary["why_not"]:
        say(f"  because {reason}", "red")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns 0 when the target was reached, else 1."""
    there = running.find(args.run_dir, args.url)
    url = args.url or there.services.get("die-service")
    if url is None:
        raise LabError(f"stage {there.state['stage']} has no die-service, nor a database behind it; stage 5 has")
    with running.telemetry(there):
        summary = asyncio.run(_run(args, url))
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if summary["reached"] else 1
