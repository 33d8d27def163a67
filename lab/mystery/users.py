"""The users of a game, and their indicators: how a fault affects them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lab import LabError, error_text
from lab.client import Lab
from lab.load.generator import PROFILES, Client, Record, Response
from lab.load.statistics import chi_square
from lab.load.users import BUILTIN, Mix, Rolls, Traffic, dice_of
from lab.waiting import within

USERS = 16
THINK_TIME = 0.5  # seconds
ASYNC_PROBABILITY, MAX_ASYNC_ROLLS, MAX_ROLLS = 0.15, 4, 12
RARE = {"risky": 0.5, "extreme": 0.1}  # the proportions of these dice; that of any other die is 1
TIMEOUT = 20.0  # seconds for one request
GOOD_SHARE = 0.7  # of the latest responses must succeed before a game begins; some rolls fail by design
FIRST_RESPONSES, FIRST_TIMEOUT = 20, 60.0  # the number of those responses, and the seconds to wait for them
LONG = 24 * 3600.0  # seconds: longer than any game
# An indicator has moved if the share of failures rises by this much, if the median or the 95th percentile rises by this
# factor, or if the faces of a die are less likely than this.
MORE_FAILURES, SLOWER, LESS_LIKELY = 0.05, 1.2, 1e-4
NOTICED_WITHIN = 5.0  # seconds; an indicator is computed from the requests of so long
MIN_REQUESTS = 10  # in that time


@dataclass(frozen=True)
class Request:
    """One request of a user; ``at`` is its end, in seconds since 1970."""

    at: float
    seconds: float
    failed: bool
    trace: str


class _Log(Record):
    """A record that keeps every request."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Request] = []

    def add(self, response: Response, timed: bool = True) -> None:
        super().add(response, timed)
        if timed:
            self.all.append(Request(time.time(), response.seconds, response.failed, response.trace_id))


class Users:
    """Users who roll until they are stopped; their requests have no spans of their own."""

    def __init__(self, lab: Lab, client: Client, seed: int) -> None:
        self._lab = lab
        self._client = client
        self._seed = seed
        self._log = _Log()
        self._stop = asyncio.Event()
        self._traffic: Traffic | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._failure = ""
        self.dice: Mapping[str, Sequence[int]] = BUILTIN

    @property
    def requests(self) -> list[Request]:
        return self._log.all

    async def start(self) -> None:
        """Start the users, and wait until enough responses succeed.

        Raises:
            LabError: when they do not in time.
        """
        self.dice = await dice_of(self._lab, await self._lab.fetch_capabilities()) or BUILTIN
        self._traffic = await self._start_users(USERS, LONG, self._stop, self._log)
        async for _ in within(FIRST_TIMEOUT):
            if self._failed.is_set():
                await self.watch()
            recent = self.requests[-FIRST_RESPONSES:]
            if len(recent) == FIRST_RESPONSES and sum(not one.failed for one in recent) >= GOOD_SHARE * FIRST_RESPONSES:
                return
        raise LabError("the lab does not answer well enough for a game to begin")

    async def watch(self) -> None:
        """Wait until the users end with an error, which ends the game.

        Raises:
            LabError: when that happens.
        """
        await self._failed.wait()
        raise LabError(f"the traffic of the users has ended: {self._failure}")

    async def spike(self, users: int, seconds: float) -> None:
        """Add more users for some seconds."""
        await self._start_users(users, seconds, self._stop, Record())

    async def _start_users(self, users: int, seconds: float, stop: asyncio.Event, record: Record) -> Traffic:
        capabilities = await self._lab.fetch_capabilities()
        probability = ASYNC_PROBABILITY if capabilities.max_times else 0.0
        # Mostly dice that hardly ever fail by design.
        mix = Mix({die: RARE.get(die, 1.0) for die in self.dice}, probability, MAX_ASYNC_ROLLS)
        traffic = Traffic(self._client, self._lab.front, mix, users, capabilities.sign_in, self._seed)
        traffic.record = record

        async def run() -> None:
            try:
                await traffic.closed(
                    stop, max_rolls=MAX_ROLLS, think_time=THINK_TIME, duration=seconds, profile=PROFILES["steady"]
                )
            except Exception as error:
                self._failure = error_text(error)
                self._failed.set()

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return traffic

    async def stop(self) -> None:
        """Stop the users; requests in flight are cancelled."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def faces(self) -> dict[str, Counter[int]]:
        """The faces that have come up so far, by die."""
        rolls = self._traffic.rolls if self._traffic is not None else Rolls()
        return {die: Counter(faces) for die, faces in rolls.faces.items()}


def indicators(
    requests: Sequence[Request],
    began: float,
    onset: float,
    ended: float,
    faces: Mapping[str, Counter[int]],
    dice: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """How a fault affects users, as JSON.

    Args:
        began, onset, ended: of the game, of the fault, and of the game, in seconds since 1970.
        faces: how often each face came up during the fault, by die.
        dice: the faces of each die.
    """
    before = [one for one in requests if began <= one.at < onset]
    during = [one for one in requests if onset <= one.at - one.seconds and one.at <= ended]
    faces_wrong = [
        die
        for die, counts in sorted(faces.items())
        if die in dice and (test := chi_square(counts, dice[die])) is not None and test.p < LESS_LIKELY
    ]
    usual, now = _figures(before), _figures(during)
    noticed = None
    after = sorted((one for one in requests if onset <= one.at <= ended), key=lambda one: one.at)
    first = 0
    for last, one in enumerate(after):
        while after[first].at < one.at - NOTICED_WITHIN:
            first += 1
        recent = after[first : last + 1]
        if len(recent) >= MIN_REQUESTS and _moved(usual, _figures(recent), strict=True):
            noticed = round(one.at - onset, 1)
            break
    return {
        "before": usual,
        "during": now,
        "faces_wrong": faces_wrong,
        "moved": bool(faces_wrong) or _moved(usual, now, strict=False),
        "noticed_seconds": noticed,
    }


def _figures(requests: Sequence[Request]) -> dict[str, Any]:
    latencies = sorted(one.seconds for one in requests)
    if not latencies:
        return {"requests": 0}
    return {
        "requests": len(latencies),
        "failed": round(sum(one.failed for one in requests) / len(latencies), 3),
        "median_ms": round(median(latencies) * 1000),
        "p95_ms": round(latencies[int(0.95 * (len(latencies) - 1))] * 1000),
    }


def _moved(first: Mapping[str, Any], then: Mapping[str, Any], strict: bool) -> bool:
    """Whether failures or latencies have risen; with ``strict``, for few requests, four times as much is required."""
    if not first["requests"] or not then["requests"]:
        return bool(first["requests"])  # nobody got a response any more
    factor = 4 if strict else 1
    slower = 1 + (SLOWER - 1) * factor
    return bool(
        then["failed"] - first["failed"] >= MORE_FAILURES * factor
        or then["median_ms"] >= slower * first["median_ms"]
        or (not strict and then["p95_ms"] >= slower * first["p95_ms"])
    )


def random_seed(chance: random.Random | None = None) -> int:
    """A seed for the users, independent of the game's."""
    return (chance or random.SystemRandom()).randrange(2**32)
