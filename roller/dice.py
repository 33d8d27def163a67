"""The domain: a die, one roll, a batch of rolls. Knows neither HTTP nor telemetry."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Die:
    """A die: its faces, each as likely as the others, and the probability, from 0 to 1, that a roll fails."""

    name: str
    faces: tuple[int, ...]
    error_rate: float

    def __post_init__(self) -> None:
        if not self.faces:
            raise ValueError(f"die {self.name!r} has no faces")
        if not 0.0 <= self.error_rate <= 1.0:
            raise ValueError(f"die {self.name!r} has an error rate of {self.error_rate}, outside 0 to 1")


class RollFailed(Exception):
    """A roll that failed by the die's error rate."""


# Takes the index of a roll in its batch, from 1, and returns the context manager that the roll runs in. The value of
# that context manager is called with the face.
WatchRoll = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class Roller:
    """Rolls dice.

    Args:
        max_delay: seconds; each roll waits a uniform random time up to this. 0 switches the wait off.
        seed: makes the sequence of rolls repeatable.
        blocking: wait without yielding to the event loop, so that nothing else runs meanwhile: a mistake for learners
            to find.
    """

    def __init__(self, max_delay: float = 1.0, seed: int | None = None, blocking: bool = False) -> None:
        self._max_delay = max_delay
        self._blocking = self._always_blocking = blocking
        self._random = random.Random(seed)
        self._extra_delay = 0.0
        self._weights: Mapping[str, Any] | None = None

    # --- injected defects, see web/defects.py ---

    def block(self, on: Any) -> None:
        """Block the event loop during each wait; ``None`` ends it."""
        self._blocking = bool(on) or self._always_blocking

    def slow(self, seconds: Any) -> None:
        """Make each roll take this many seconds longer; ``None`` ends it."""
        self._extra_delay = float(seconds or 0.0)

    def weight(self, weights: Any) -> None:
        """Load a die: ``{"die": "fair", "face": 6, "share": 0.5}``; ``None`` ends it."""
        self._weights = weights

    # --- rolls ---

    async def roll(self, die: Die) -> int:
        """Roll once and return the face.

        Raises:
            RollFailed: as often as the die's ``error_rate`` says.
        """
        # All random numbers are drawn before the wait: concurrent rolls then draw in the order in which they start,
        # and a seed repeats them.
        delay = self._random.random() * self._max_delay
        fails = self._random.random() < die.error_rate
        face = self._random.choice(die.faces)
        if self._weights is not None and die.name == self._weights["die"]:
            face = self._weights["face"] if self._random.random() < self._weights["share"] else face
        delay += self._extra_delay
        # Without a delay this still yields to the event loop, so that all rolls of a batch start before the first ends.
        if self._blocking:
            time.sleep(delay)  # noqa: ASYNC251
        else:
            await asyncio.sleep(delay)
        if fails:
            raise RollFailed(f"The {die.name} die failed to roll.")
        return face

    async def roll_batch(self, die: Die, times: int, watch: WatchRoll) -> list[int | None]:
        """Roll ``times`` times concurrently; a failed roll does not stop the others.

        Returns:
            ``times`` faces in order, ``None`` where a roll failed.
        """

        async def one(index: int) -> int:
            with watch(index) as completed:
                face = await self.roll(die)
                completed(face)
                return face

        outcomes = await asyncio.gather(*(one(index) for index in range(1, times + 1)), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, RollFailed):
                raise outcome
        return [outcome if isinstance(outcome, int) else None for outcome in outcomes]
