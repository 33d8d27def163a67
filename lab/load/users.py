"""Simulated users who roll dice concurrently: in the closed model, or in the open one."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab import LabError, telemetry
from lab.client import DIE_SERVICE, Capabilities, Lab
from lab.load import generator
from lab.load.generator import Client, Record, Response
from lab.waiting import sleep
from otel import logs

# The dice of a lab without a die-service, and their faces.
BUILTIN: dict[str, tuple[int, ...]] = {"fair": (1, 2, 3, 4, 5, 6), "risky": (2, 3, 4, 5, 6, 7)}
EXTREME = (0, 0, 6, 6, 6, 6)  # the third die, which stages with a die-service have
ASYNC_PROBABILITY = 0.2
MAX_ASYNC_ROLLS = 10
ROLLS = ("/roll", "/roll-async")  # the routes whose latency is measured

_log = logs.events(telemetry.SERVICE)


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


def check_known(chosen: Iterable[str], known: Iterable[str], lab: Lab) -> None:
    """Check that a lab has the chosen dice. If only the lab's URL is known, its dice are a guess, and any is allowed.

    Args:
        known: the lab's dice; empty if the die-service does not return them.

    Raises:
        LabError: when it lacks one.
    """
    there = sorted(known)
    unknown = sorted(set(chosen).difference(there))
    if unknown and there and lab.services:
        names = " or ".join(name or "''" for name in unknown)
        raise LabError(f"there is no {names} die in this lab; it has {', '.join(there)}")


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
