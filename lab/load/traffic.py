"""``dicelab traffic``: users who roll dice at once, each request a trace of its own, and what they got."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from rich.console import Console
from rich.table import Table

from lab import LabError
from lab import client as running
from lab.client import Face, Running
from lab.load import generator as load
from lab.load.generator import Answer, Client, Record
from lab.load.statistics import chi_square
from otel import logs

# The dice that there are where no die-service says otherwise, and their faces.
BUILTIN: dict[str, tuple[int, ...]] = {"fair": (1, 2, 3, 4, 5, 6), "risky": (2, 3, 4, 5, 6, 7)}
# Dice whose faces come up in proportions that a fair one shows less often than this are called biased.
SIGNIFICANCE = 0.001
DEFAULT_USERS = 5
DEFAULT_MAX_ROLLS = 10
DEFAULT_THINK_TIME = 0.5  # seconds
DEFAULT_DURATION = 60.0  # seconds, where something needs one
ASYNC_PROBABILITY = 0.2
MAX_ASYNC_ROLLS = 10
ROLLS = ("/roll", "/roll-async")  # what latency is about
SHOWN = 5  # trace ids on a terminal

_line = logs.events(running.SERVICE)


@dataclass(frozen=True)
class Mix:
    """What users ask for.

    Attributes:
        dice: how often each die is asked for, in proportion.
        async_probability: how often a batch of 1 to ``max_async_rolls`` is, from 0 to 1.
    """

    dice: Mapping[str, float]
    async_probability: float
    max_async_rolls: int

    def draw(self, chance: random.Random) -> tuple[str, int | None]:
        """A die, and how many rolls at once, ``None`` for one by ``/roll``."""
        die = chance.choices(list(self.dice), list(self.dice.values()))[0]
        if chance.random() >= self.async_probability:
            return die, None
        return die, chance.randint(1, self.max_async_rolls)


@dataclass
class Rolls:
    """How the dice fell."""

    asked: int = 0
    faces: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, die: str, times: int | None, answer: Answer) -> int:
        """Count the rolls of an answer, those of a batch of which others failed too; returns how many came out."""
        self.asked += times or 1
        rolled = answer.document.get("rolls") if times else [answer.document.get("roll")]
        faces = [face for face in rolled if isinstance(face, int)] if isinstance(rolled, list) else []
        self.faces.setdefault(die, Counter()).update(faces)
        return len(faces)

    @property
    def came_out(self) -> int:
        return sum(faces.total() for faces in self.faces.values())


class User:
    """Someone who rolls dice: signs in where that is asked for, rolls, and signs out."""

    def __init__(self, traffic: Traffic, name: str) -> None:
        self.name = name
        self._traffic = traffic
        self._cookie: dict[str, str] = {}
        self._started = time.monotonic()
        self._requests = self._rolls = self._failed = 0

    async def arrive(self) -> None:
        if not self._traffic.sign_in:
            return
        answer = await self._ask("/sign-in", method="POST", form={"name": self.name})
        cookie = answer.headers.get("Set-Cookie", "").partition(";")[0]
        self._cookie = {"Cookie": cookie} if cookie else {}

    async def roll(self, die: str, times: int | None, due: float | None = None) -> None:
        query = {"die": die} if times is None else {"die": die, "times": str(times)}
        answer = await self._ask("/roll" if times is None else "/roll-async", query, due=due, die=die)
        self._rolls += self._traffic.rolls.add(die, times, answer)

    async def leave(self) -> None:
        if self._cookie:
            await self._ask("/sign-out", method="POST")
        _line(
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
    ) -> Answer:
        traffic = self._traffic
        attributes = {"user.name": self.name} | ({"die.type": die} if die else {})
        answer = await traffic.client.ask(traffic.url, route, query, headers=self._cookie, attributes=attributes, **how)
        traffic.record.add(answer, timed=route in ROLLS)
        self._requests += 1
        self._failed += answer.failed
        return answer


class Traffic:
    """One run. Either :meth:`closed` or :meth:`open`, once."""

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
        """Each user waits for an answer and thinks before asking again.

        A user makes 1 to ``max_rolls`` requests. Without a duration that is all; with one the next user comes
        as long as there is time.
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
                    await load.sleep(0.1, stop)
                    continue
                visit += 1
                user = User(self, f"user {index + 1}" if visit == 1 else f"user {index + 1}.{visit}")
                rolls = chance.randint(1, max_rolls)
                await user.arrive()
                for number in range(rolls):
                    if number:
                        await load.sleep(think_time * chance.uniform(0.5, 1.5), stop)
                    if time_is_up() or not wanted(index):
                        break
                    await user.roll(*self._mix.draw(chance))
                await user.leave()
                if duration is None:
                    return
                await load.sleep(think_time * chance.uniform(0.5, 1.5), stop)

        await asyncio.gather(*(slot(index) for index in range(self._users)))

    async def open(
        self, stop: asyncio.Event, *, rate: float, duration: float, profile: Callable[[float], float]
    ) -> None:
        """Requests are due at a rate, whatever becomes of those before; users take turns."""
        chance = random.Random(self._seed)
        users = [User(self, f"user {index + 1}") for index in range(self._users)]
        await asyncio.gather(*(user.arrive() for user in users))

        async def ask(number: int, due: float) -> None:
            await users[number % len(users)].roll(*self._mix.draw(chance), due)

        due = load.arrivals(rate, duration, profile)
        self.late = await load.open_loop(due, ask, stop, self.record)
        await asyncio.gather(*(user.leave() for user in users))


async def dice_of(session: aiohttp.ClientSession, there: Running, face: Face) -> dict[str, tuple[int, ...]]:
    """The dice there are, with their faces; empty where they are known to nobody that can be asked."""
    url = there.services.get("die-service")
    if url is None:
        return BUILTIN if there.services or not face.max_times else {**BUILTIN, "extreme": (0, 0, 6, 6, 6, 6)}
    try:
        async with session.get(f"{url}/dice") as response:
            names = (await response.json())["identifiers"]
        dice = {}
        for name in names:
            async with session.get(f"{url}/dice", params={"identifier": name}) as response:
                dice[name] = tuple((await response.json())["specification"]["faces"])
        return dice
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, TypeError):
        return {}


def faces_told(rolls: Rolls, dice: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """How often each face of each die came up, and what the chi-square test says of it."""
    told: dict[str, dict[str, Any]] = {}
    for die, faces in sorted(rolls.faces.items()):
        if not faces:
            continue
        entry: dict[str, Any] = {"faces": {str(face): faces[face] for face in sorted(faces)}}
        test = chi_square(faces, dice[die]) if die in dice else None
        if die not in dice:
            entry["verdict"] = "nobody says what to expect"
        elif test is None:
            entry["verdict"] = "too few rolls to say"
        else:
            entry["verdict"] = "as expected" if test.p >= SIGNIFICANCE else "not as expected"
            entry |= {"chi_square": round(test.statistic, 3), "degrees": test.degrees, "p": round(test.p, 6)}
        told[die] = entry
    return told


def _mix(args: argparse.Namespace, face: Face, known: Mapping[str, Sequence[int]]) -> Mix:
    dice = dict(args.die) if args.die else dict.fromkeys(known, 1.0)
    if not dice:
        raise LabError("which dice there are cannot be found out; name some by --die")
    if not face.max_times and (args.async_probability or args.max_async_rolls):
        raise LabError(f"the {face.name} there has no /roll-async")
    most = MAX_ASYNC_ROLLS if args.max_async_rolls is None else args.max_async_rolls
    if face.max_times and most > face.max_times:
        raise LabError(f"--max-async-rolls {most}: a batch there has {face.max_times} rolls at the most")
    probability = ASYNC_PROBABILITY if args.async_probability is None else args.async_probability
    return Mix(dice, probability if face.max_times else 0.0, most)


async def _run(args: argparse.Namespace, there: Running) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    needs_end = args.rate is not None or args.profile != "steady"
    duration = DEFAULT_DURATION if args.duration is None and needs_end else args.duration
    think_time = DEFAULT_THINK_TIME if args.think_time is None else args.think_time
    async with Client(args.timeout) as client, load.stoppable() as stop:
        with suppress_http_instrumentation():  # no user asks this
            face = await running.face(client.session, there.url)
            dice = await dice_of(client.session, there, face)
        sign_in = face.sign_in and not args.anonymous
        traffic = Traffic(client, there.url, _mix(args, face, dice), args.users, sign_in, seed)
        model = "closed" if args.rate is None else "open"
        _line(
            logging.INFO,
            "Traffic started",
            url=there.url,
            model=model,
            profile=args.profile,
            users=args.users,
            seed=seed,
        )
        profile = load.PROFILES[args.profile]
        beginning = time.monotonic()
        record = traffic.record

        def said() -> str:
            latency = load.percentiles(record.histogram)
            p95 = f"p95 {latency['p95']:.0f} ms" if latency else ""
            return f"{record.requests} requests  {traffic.rolls.came_out} rolls  {p95}"

        async with load.shown(
            "traffic", said, lambda: duration and min(1.0, (time.monotonic() - beginning) / duration)
        ):
            if args.rate is None:
                await traffic.closed(
                    stop,
                    max_rolls=args.max_rolls or DEFAULT_MAX_ROLLS,
                    think_time=think_time,
                    duration=duration,
                    profile=profile,
                )
            else:
                await traffic.open(stop, rate=args.rate, duration=duration or DEFAULT_DURATION, profile=profile)
        seconds = time.monotonic() - beginning
    statuses = record.statuses
    _line(
        logging.INFO,
        "Traffic done",
        requests=record.requests,
        rolls=traffic.rolls.came_out,
        failed=record.failures,
        not_sent=record.not_sent,
        seconds=round(seconds, 3),
    )
    summary: dict[str, Any] = {
        "url": there.url,
        "model": model,
        "profile": args.profile,
        "users": args.users,
        "seed": seed,
        "interrupted": stop.is_set(),
        "seconds": round(seconds, 3),
        "requests": record.requests,
        "requests_per_second": round(record.requests / seconds, 2),
        "not_sent": record.not_sent,
        "late_seconds": round(traffic.late, 3),
        "failed": record.failures,
        "rolls": {"asked": traffic.rolls.asked, "came_out": traffic.rolls.came_out},
        "statuses": dict(sorted(statuses.items())),
        "routes": {route: dict(sorted(counts.items())) for route, counts in sorted(record.routes.items())},
        "latency_ms": _latency(record, model, think_time),
        "dice": faces_told(traffic.rolls, dice),
        "slowest": load.told(record.slowest),
        "failures": load.told(record.failed),
    }
    return summary


def _latency(record: Record, model: str, think_time: float) -> dict[str, Any]:
    measured = load.percentiles(record.histogram)
    if model == "open":
        return {"counted": "is measured from when each roll was due", **measured}
    if not measured or think_time == 0:
        return {"counted": "is measured from when each roll was asked for", **measured}
    interval = think_time + measured["p50"] / 1000
    return {
        "counted": f"is corrected for coordinated omission, with a roll every {interval:.3f} s a user",
        **load.percentiles(record.corrected(interval)),
        "uncorrected": measured,
    }


def _show(summary: dict[str, Any], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    rolls = summary["rolls"]
    say(
        f"{summary['requests']} requests in {summary['seconds']:.1f} s ({summary['requests_per_second']:.1f}/s), "
        f"{rolls['came_out']} of {rolls['asked']} rolls came out, seed {summary['seed']}"
    )
    if summary["interrupted"]:
        say("Interrupted: this is what there was until then.", "yellow")
    if summary["not_sent"]:
        say(f"{summary['not_sent']} more were due and not sent: too many were under way", "red")
    if summary["late_seconds"] > 0.1:
        say(f"This process could not keep up: a request started {summary['late_seconds']:.1f} s late", "yellow")
    routes = Table("route", "requests", "by status")
    for route, counts in summary["routes"].items():
        by_status = "  ".join(f"{status}: {count}" for status, count in counts.items())
        routes.add_row(route, str(sum(counts.values())), by_status)
    console.print(routes)
    show_latency(summary["latency_ms"], console)
    for die, entry in summary["dice"].items():
        faces = "  ".join(f"{face}: {count}" for face, count in entry["faces"].items())
        test = f" (chi² {entry['chi_square']:.2f}, p {entry['p']:.3f})" if "p" in entry else ""
        say(f"{die:8} {faces}  {entry['verdict']}{test}", "red" if entry["verdict"] == "not as expected" else "")
    for title, answers in (("slowest", summary["slowest"]), ("failed", summary["failures"][-SHOWN:])):
        for answer in answers:
            say(f"{title:8} {answer['ms']:9.1f} ms  {answer['status']:>4}  {answer['route']}  {answer['trace_id']}")
    if summary["failed"] > SHOWN:
        listed = "them" if summary["failed"] <= load.FAILED else f"the last {load.FAILED}"
        say(f"{summary['failed']} failed in all; --json lists {listed}")


def show_latency(latency: Mapping[str, Any], console: Console) -> None:
    """Print percentiles, in milliseconds."""
    values = [name for name in latency if isinstance(latency[name], float)]
    if not values:
        return
    table = Table("latency, ms", *values)
    counted = "corrected" if "uncorrected" in latency else "measured"
    table.add_row(counted, *(f"{latency[name]:.1f}" for name in values))
    if "uncorrected" in latency:
        table.add_row("measured", *(f"{latency['uncorrected'][name]:.1f}" for name in values))
    console.print(table)
    console.print(f"Latency {latency['counted']}.", style="dim", highlight=False, soft_wrap=True)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns 0 when any roll came out, else 1."""
    if args.rate is not None and (args.max_rolls is not None or args.think_time is not None):
        raise LabError("--rate sets the pace, --max-rolls and --think-time do not go with it")
    there = running.find(args.run_dir, args.url)
    with running.telemetry(there):
        summary = asyncio.run(_run(args, there))
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if any(summary["routes"].get(route, {}).get("200") for route in ROLLS) else 1
