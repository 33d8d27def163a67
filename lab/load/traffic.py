"""``dicelab traffic``: simulates users who roll dice concurrently, and summarises the responses."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab import InputError, LabError, telemetry
from lab.client import Capabilities, Lab
from lab.load import generator
from lab.load.generator import Client, Record, summarized
from lab.load.report import show_failures, show_latency, show_responses
from lab.load.statistics import chi_square
from lab.load.users import ASYNC_PROBABILITY, MAX_ASYNC_ROLLS, ROLLS, Mix, Rolls, Traffic, check_known, dice_of
from lab.terminal import print_table, progress, say
from lab.waiting import stop_signal
from otel import logs

SIGNIFICANCE = 0.001  # below this p value the faces of a die are reported as not as expected
DEFAULT_MAX_ROLLS = 10
DEFAULT_THINK_TIME = 0.5  # seconds
DEFAULT_DURATION = 60.0  # seconds; for the open model and for profiles, which need a duration

_log = logs.events(telemetry.SERVICE)


@dataclass(frozen=True)
class Options:
    """The options of the command; ``None`` stands for its default.

    Attributes:
        url: the URL of a lab; ``None`` for the lab in the run dir.
        max_rolls: a user makes 1 to this many requests.
        die: the proportion in which each die is rolled.
        async_probability: the probability that a request is for a batch.
        max_async_rolls: a batch has 1 to this many rolls.
        think_time: seconds between a response and the next request of the user.
        rate: rolls a second in the open model; ``None`` for the closed model.
        timeout: seconds for one request.
    """

    run_dir: Path
    url: str | None
    users: int
    max_rolls: int | None
    die: Mapping[str, float] | None
    async_probability: float | None
    max_async_rolls: int | None
    think_time: float | None
    duration: float | None
    rate: float | None
    profile: str
    anonymous: bool
    seed: int | None
    timeout: float
    json: bool

    @property
    def model(self) -> str:
        return "closed" if self.rate is None else "open"

    @property
    def pause(self) -> float:
        """The think time of the closed model, in seconds."""
        return DEFAULT_THINK_TIME if self.think_time is None else self.think_time

    @property
    def ends_after(self) -> float | None:
        """Seconds; ``None`` if the traffic ends when each user has made the last request."""
        needs_end = self.rate is not None or self.profile != "steady"
        return DEFAULT_DURATION if self.duration is None and needs_end else self.duration


def faces_summarized(rolls: Rolls, dice: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """How often each face of each die came up, with the result of the chi-square test."""
    summary: dict[str, dict[str, Any]] = {}
    for die, faces in sorted(rolls.faces.items()):
        if not faces:
            continue
        entry: dict[str, Any] = {"faces": {str(face): faces[face] for face in sorted(faces)}}
        test = chi_square(faces, dice[die]) if die in dice else None
        if die not in dice:
            entry["verdict"] = "the faces of this die are not known"
        elif test is None:
            entry["verdict"] = "too few rolls for a test"
        else:
            entry["verdict"] = "as expected" if test.p >= SIGNIFICANCE else "not as expected"
            entry |= {"chi_square": round(test.statistic, 3), "degrees": test.degrees, "p": round(test.p, 6)}
        summary[die] = entry
    return summary


def _mix(options: Options, capabilities: Capabilities, known: Mapping[str, Sequence[int]]) -> Mix:
    dice = dict(options.die) if options.die else dict.fromkeys(known, 1.0)
    if not dice:
        raise LabError("the lab does not say which dice it has; name some by --die")
    if not capabilities.max_times and (options.async_probability or options.max_async_rolls):
        raise LabError(f"the {capabilities.title} there has no /roll-async")
    most = MAX_ASYNC_ROLLS if options.max_async_rolls is None else options.max_async_rolls
    if capabilities.max_times and most > capabilities.max_times:
        raise LabError(f"--max-async-rolls {most}: a batch has at most {capabilities.max_times} rolls there")
    probability = ASYNC_PROBABILITY if options.async_probability is None else options.async_probability
    return Mix(dice, probability if capabilities.max_times else 0.0, most)


async def _run(options: Options, lab: Lab) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    async with lab, Client(options.timeout) as client, stop_signal() as stop:
        capabilities = await lab.fetch_capabilities()
        dice = await dice_of(lab, capabilities)
        sign_in = capabilities.sign_in and not options.anonymous
        check_known(options.die or (), dice, lab)
        traffic = Traffic(client, lab.front, _mix(options, capabilities, dice), options.users, sign_in, seed)
        _log(
            logging.INFO,
            "Traffic started",
            url=lab.front,
            model=options.model,
            profile=options.profile,
            users=options.users,
            seed=seed,
        )
        beginning = time.monotonic()
        await _simulate(options, traffic, stop)
        seconds = time.monotonic() - beginning
    record = traffic.record
    _log(
        logging.INFO,
        "Traffic done",
        requests=record.requests,
        rolls=traffic.rolls.came_out,
        failed=record.failures,
        not_sent=record.not_sent,
        seconds=round(seconds, 3),
    )
    return {
        "url": lab.front,
        "model": options.model,
        "profile": options.profile,
        "users": options.users,
        "seed": seed,
        "interrupted": stop.is_set(),
        "seconds": round(seconds, 3),
        "requests": record.requests,
        "requests_per_second": round(record.requests / seconds, 2),
        "not_sent": record.not_sent,
        "late_seconds": round(traffic.late, 3),
        "failed": record.failures,
        "rolls": {"asked": traffic.rolls.asked, "came_out": traffic.rolls.came_out},
        "statuses": dict(sorted(record.statuses.items())),
        "routes": {route: dict(sorted(counts.items())) for route, counts in sorted(record.routes.items())},
        "latency_ms": _latency(options, record),
        "dice": faces_summarized(traffic.rolls, dice),
        "slowest": summarized(record.slowest),
        "failures": summarized(record.failed),
    }


async def _simulate(options: Options, traffic: Traffic, stop: asyncio.Event) -> None:
    """Run the users in the chosen model, and show how far they are."""
    beginning = time.monotonic()
    duration, profile = options.ends_after, generator.PROFILES[options.profile]

    def words() -> str:
        latencies = traffic.record.latencies
        p95 = f"p95 {latencies.percentile(95) * 1000:.0f} ms" if len(latencies) else ""
        return f"{traffic.record.requests} requests  {traffic.rolls.came_out} rolls  {p95}"

    async with progress("traffic", words, lambda: duration and min(1.0, (time.monotonic() - beginning) / duration)):
        if options.rate is not None:
            await traffic.open(stop, rate=options.rate, duration=duration or DEFAULT_DURATION, profile=profile)
        else:
            await traffic.closed(
                stop,
                max_rolls=options.max_rolls or DEFAULT_MAX_ROLLS,
                think_time=options.pause,
                duration=duration,
                profile=profile,
            )


def _latency(options: Options, record: Record) -> dict[str, Any]:
    measured = record.latencies.summary()
    if options.model == "open":
        return {"counted": "is measured from the time each roll was due", **measured}
    if not measured or options.pause == 0:
        return {"counted": "is measured from the time each roll was requested", **measured}
    interval = options.pause + measured["p50"] / 1000
    return {
        "counted": f"is corrected for coordinated omission, with a roll every {interval:.3f} s a user",
        **record.latencies.corrected(interval).summary(),
        "uncorrected": measured,
    }


def _show(summary: dict[str, Any], console: Console) -> None:
    rolls = summary["rolls"]
    say(
        console,
        f"{summary['requests']} requests in {summary['seconds']:.1f} s ({summary['requests_per_second']:.1f}/s), "
        f"{rolls['came_out']} of {rolls['asked']} rolls succeeded, seed {summary['seed']}",
    )
    if summary["interrupted"]:
        say(console, "Interrupted: these are the results until then.", "yellow")
    if summary["not_sent"]:
        say(console, f"{summary['not_sent']} more were due but not sent: too many requests were in flight", "red")
    if summary["late_seconds"] > 0.1:
        say(
            console,
            f"This process could not keep up: one request started {summary['late_seconds']:.1f} s late",
            "yellow",
        )
    routes = Table("route", "requests", "by status")
    for route, counts in summary["routes"].items():
        by_status = "  ".join(f"{status}: {count}" for status, count in counts.items())
        routes.add_row(route, str(sum(counts.values())), by_status)
    print_table(console, routes)
    show_latency(summary["latency_ms"], console)
    for die, entry in summary["dice"].items():
        faces = "  ".join(f"{face}: {count}" for face, count in entry["faces"].items())
        test = f" (chi² {entry['chi_square']:.2f}, p {entry['p']:.3f})" if "p" in entry else ""
        say(
            console,
            f"{die:8} {faces}  {entry['verdict']}{test}",
            "red" if entry["verdict"] == "not as expected" else "",
        )
    show_responses("slowest", summary["slowest"], console)
    show_failures(summary["failures"], summary["failed"], console)


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 if any roll succeeded, else 1."""
    if options.rate is not None and (options.max_rolls is not None or options.think_time is not None):
        raise InputError("--rate sets the pace, --max-rolls and --think-time do not go with it")
    lab = Lab.find(options.run_dir, options.url)
    lab.timeout = options.timeout
    with telemetry.recorded(lab):
        summary = asyncio.run(_run(options, lab))
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if any(summary["routes"].get(route, {}).get("200") for route in ROLLS) else 1
