"""``dicelab traffic``: simulates users who roll dice concurrently, and summarises the responses."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from lab import LabError, telemetry
from lab.client import DIE_SERVICE, Capabilities, Lab
from lab.load import generator
from lab.load.generator import Client, Record, Response, summarized
from lab.load.report import SHOWN, show_latency
from lab.load.statistics import chi_square
from lab.terminal import progress, say
from lab.waiting import sleep, stop_signal
from otel import logs

# The dice of a lab without a die-service, and their faces.
BUILTIN: dict[str, tuple[int, ...]] = {"fair": (1, 2, 3, 4, 5, 6), "risky": (2, 3, 4, 5, 6, 7)}
EXTREME = (0, 0, 6, 6, 6, 6)  # the third die, which stages with a die-service have
SIGNIFICANCE = 0.001  # below this p value the faces of a die are reported as not as expected
DEFAULT_MAX_ROLLS = 10
DEFAULT_THINK_TIME = 0.5  # seconds
DEFAULT_DURATION = 60.0  # seconds; for the open model and for profiles, which need a duration
ASYNC_PROBABILITY = 0.2
MAX_ASYNC_ROLLS = 10
ROLLS = ("/roll", "/roll-async")  # the routes whose latency is measured

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


@dataclass(frozen=True)
class Mix:
    """What users roll.

    Attributes:
        dice: the proportion in which each die is rolled.
        async_probability: the probability, from 0 to 1, of a batch of 1 to ``max_async_rolls``.
    """

    dice: Mapping[str, float]
    async_probability: float
    max_async_rolls: int

    def draw(self, chance: random.Random) -> tuple[str, int | None]:
        """A random die and the size of a batch, or ``None`` for a single roll by ``/roll``."""
        die = chance.choices(list(self.dice), list(self.dice.values()))[0]
        if chance.random() >= self.async_probability:
            return die, None
        return die, chance.randint(1, self.max_async_rolls)


@dataclass
class Rolls:
    """How many rolls were requested, and the faces that came up."""

    asked: int = 0
    faces: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, die: str, times: int | None, response: Response) -> int:
        """Count the rolls of a response, which may be a batch that failed in part; returns how many succeeded."""
        self.asked += times or 1
        rolled = response.document.get("rolls") if times else [response.document.get("roll")]
        faces = [face for face in rolled if isinstance(face, int)] if isinstance(rolled, list) else []
        self.faces.setdefault(die, Counter()).update(faces)
        return len(faces)

    @property
    def came_out(self) -> int:
        return sum(faces.total() for faces in self.faces.values())


class User:
    """Someone who rolls dice: signs in where the lab requires it, rolls, and signs out."""

    def __init__(self, traffic: Traffic, name: str) -> None:
        self.name = name
        self._traffic = traffic
        self._cookie: dict[str, str] = {}
        self._started = time.monotonic()
        self._requests = self._rolls = self._failed = 0

    async def arrive(self) -> None:
        if not self._traffic.sign_in:
            return
        response = await self._ask("/sign-in", method="POST", form={"name": self.name})
        cookie = response.headers.get("Set-Cookie", "").partition(";")[0]
        self._cookie = {"Cookie": cookie} if cookie else {}

    async def roll(self, die: str, times: int | None, due: float | None = None) -> None:
        query = {"die": die} if times is None else {"die": die, "times": str(times)}
        response = await self._ask("/roll" if times is None else "/roll-async", query, due=due, die=die)
        self._rolls += self._traffic.rolls.add(die, times, response)

    async def leave(self) -> None:
        if self._cookie:
            await self._ask("/sign-out", method="POST")
        _log(
            logging.INFO,
            "User done",
            user=self.name,
            requests=self._requests,
            rolls=self._rolls,
            failed=self._failed,
            seconds=round(time.monotonic() - self._started, 3),
        )

    async def _ask(
        self, route: str, query: Mapping[str, str] | None = None, die: str | None = None, **how: Any
    ) -> Response:
        traffic = self._traffic
        attributes = {"user.name": self.name} | ({"die.type": die} if die else {})
        response = await traffic.client.ask(
            traffic.url, route, query, headers=self._cookie, attributes=attributes, **how
        )
        traffic.record.add(response, timed=route in ROLLS)
        self._requests += 1
        self._failed += response.failed
        return response


class Traffic:
    """One run. Call either :meth:`closed` or :meth:`open`, once."""

    def __init__(self, client: Client, url: str, mix: Mix, users: int, sign_in: bool, seed: int) -> None:
        self.client = client
        self.url = url
        self.sign_in = sign_in
        self.record = Record()
        self.rolls = Rolls()
        self.late = 0.0
        self._mix = mix
        self._users = users
        self._seed = seed

    async def closed(
        self,
        stop: asyncio.Event,
        *,
        max_rolls: int,
        think_time: float,
        duration: float | None,
        profile: Callable[[float], float],
    ) -> None:
        """The closed model: each user waits for the response and a think time before the next request.

        A user makes 1 to ``max_rolls`` requests. With a duration another user then follows, until the time
        is up.
        """
        beginning = time.monotonic()

        def time_is_up() -> bool:
            return stop.is_set() or (duration is not None and time.monotonic() >= beginning + duration)

        def wanted(slot: int) -> bool:
            if duration is None:
                return True
            return slot < math.ceil(self._users * profile(min(1.0, (time.monotonic() - beginning) / duration)))

        async def slot(index: int) -> None:
            chance = random.Random(f"{self._seed} {index}")
            visit = 0
            while not time_is_up():
                if not wanted(index):
                    await sleep(0.1, stop)
                    continue
                visit += 1
                user = User(self, f"user {index + 1}" if visit == 1 else f"user {index + 1}.{visit}")
                rolls = chance.randint(1, max_rolls)
                await user.arrive()
                for number in range(rolls):
                    if number:
                        await sleep(think_time * chance.uniform(0.5, 1.5), stop)
                    if time_is_up() or not wanted(index):
                        break
                    await user.roll(*self._mix.draw(chance))
                await user.leave()
                if duration is None:
                    return
                await sleep(think_time * chance.uniform(0.5, 1.5), stop)

        await asyncio.gather(*(slot(index) for index in range(self._users)))

    async def open(
        self, stop: asyncio.Event, *, rate: float, duration: float, profile: Callable[[float], float]
    ) -> None:
        """The open model: requests start at a rate, whether earlier ones have completed or not."""
        chance = random.Random(self._seed)
        users = [User(self, f"user {index + 1}") for index in range(self._users)]
        await asyncio.gather(*(user.arrive() for user in users))

        async def ask(number: int, due: float) -> None:
            await users[number % len(users)].roll(*self._mix.draw(chance), due)

        due = generator.arrivals(rate, duration, profile)
        self.late = await generator.open_loop(due, ask, stop, self.record)
        await asyncio.gather(*(user.leave() for user in users))


async def dice_of(lab: Lab, capabilities: Capabilities) -> dict[str, tuple[int, ...]]:
    """The lab's dice with their faces; empty if the die-service does not return them."""
    if DIE_SERVICE not in lab.services:
        return BUILTIN if lab.services or not capabilities.max_times else {**BUILTIN, "extreme": EXTREME}
    url = f"{lab.url(DIE_SERVICE)}/dice"
    try:
        dice = {}
        for name in (await lab.fetch(url)).json["identifiers"]:
            dice[name] = tuple((await lab.fetch(url, {"identifier": name})).json["specification"]["faces"])
        return dice
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, TypeError):
        return {}


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


def _check_known(chosen: Iterable[str], known: Iterable[str]) -> None:
    """Raise for dice that the lab does not have."""
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise LabError(f"there is no {' or '.join(unknown)} die in this lab; it has {', '.join(sorted(known))}")


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
    needs_end = options.rate is not None or options.profile != "steady"
    duration = DEFAULT_DURATION if options.duration is None and needs_end else options.duration
    think_time = DEFAULT_THINK_TIME if options.think_time is None else options.think_time
    async with lab, Client(options.timeout) as client, stop_signal() as stop:
        capabilities = await lab.fetch_capabilities()
        dice = await dice_of(lab, capabilities)
        sign_in = capabilities.sign_in and not options.anonymous
        if options.die and dice and lab.services:  # for a lab of which only the URL is known, the dice are a guess
            _check_known(options.die, dice)
        traffic = Traffic(client, lab.front, _mix(options, capabilities, dice), options.users, sign_in, seed)
        model = "closed" if options.rate is None else "open"
        _log(
            logging.INFO,
            "Traffic started",
            url=lab.front,
            model=model,
            profile=options.profile,
            users=options.users,
            seed=seed,
        )
        profile = generator.PROFILES[options.profile]
        beginning = time.monotonic()
        record = traffic.record

        def words() -> str:
            p95 = f"p95 {record.latencies.percentile(95) * 1000:.0f} ms" if len(record.latencies) else ""
            return f"{record.requests} requests  {traffic.rolls.came_out} rolls  {p95}"

        async with progress("traffic", words, lambda: duration and min(1.0, (time.monotonic() - beginning) / duration)):
            if options.rate is None:
                await traffic.closed(
                    stop,
                    max_rolls=options.max_rolls or DEFAULT_MAX_ROLLS,
                    think_time=think_time,
                    duration=duration,
                    profile=profile,
                )
            else:
                await traffic.open(stop, rate=options.rate, duration=duration or DEFAULT_DURATION, profile=profile)
        seconds = time.monotonic() - beginning
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
        "model": model,
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
        "latency_ms": _latency(record, model, think_time),
        "dice": faces_summarized(traffic.rolls, dice),
        "slowest": summarized(record.slowest),
        "failures": summarized(record.failed),
    }


def _latency(record: Record, model: str, think_time: float) -> dict[str, Any]:
    measured = record.latencies.summary()
    if model == "open":
        return {"counted": "is measured from the time each roll was due", **measured}
    if not measured or think_time == 0:
        return {"counted": "is measured from the time each roll was requested", **measured}
    interval = think_time + measured["p50"] / 1000
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
    console.print(routes)
    show_latency(summary["latency_ms"], console)
    for die, entry in summary["dice"].items():
        faces = "  ".join(f"{face}: {count}" for face, count in entry["faces"].items())
        test = f" (chi² {entry['chi_square']:.2f}, p {entry['p']:.3f})" if "p" in entry else ""
        say(
            console,
            f"{die:8} {faces}  {entry['verdict']}{test}",
            "red" if entry["verdict"] == "not as expected" else "",
        )
    for title, responses in (("slowest", summary["slowest"]), ("failed", summary["failures"][-SHOWN:])):
        for one in responses:
            say(
                console,
                f"{title:8} {one['ms']:9.1f} ms  {one['status']:>4}  {one['route']}  {one['trace_id']}",
            )
    if summary["failed"] > SHOWN:
        listed = "them" if summary["failed"] <= generator.KEPT_FAILED else f"the last {generator.KEPT_FAILED}"
        say(console, f"{summary['failed']} failed in all; --json lists {listed}")


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 if any roll succeeded, else 1."""
    if options.rate is not None and (options.max_rolls is not None or options.think_time is not None):
        raise LabError("--rate sets the pace, --max-rolls and --think-time do not go with it")
    lab = Lab.find(options.run_dir, options.url)
    with telemetry.recorded(lab):
        summary = asyncio.run(_run(options, lab))
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if any(summary["routes"].get(route, {}).get("200") for route in ROLLS) else 1
