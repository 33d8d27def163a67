"""The domain: a die, one roll, a batch of rolls. Knows neither HTTP nor telemetry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True)
class Die:
    """A die: the faces it may show and how often, from 0 to 1, rolling it fails."""

    name: str
    faces: tuple[int, ...]
    error_rate: float

    def __post_init__(self) -> None:
        if not self.faces:
            raise ValueError(f"die {self.name!r} has no faces")
        if not 0.0 <= self.error_rate <= 1.0:
            raise ValueError(f"die {self.name!r} has an error rate of {self.error_rate}, outside 0 to 1")


class RollFailed(Exception):
    """A roll that went wrong, as the die's error rate says some do."""


# Told of one roll of a batch while it runs: enter with its index (from 1), call the result with the value.
WatchRoll = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class Table:
    """Where dice are rolled.

    Args:
        max_delay: seconds; each roll waits a uniform random time up to this. 0 switches the wait off.
        seed: makes the sequence of rolls repeatable.
    """

    def __init__(self, max_delay: float = 1.0, seed: int | None = None) -> None:
        self._max_delay = max_delay
        self._random = random.Random(seed)

    async def roll(self, die: Die) -> int:
        """Roll once and return the face.

        Raises:
            RollFailed: with the die's probability.
        """
        # All that chance decides is drawn before the wait, so that rolls under way at the same time
        # do not reorder each other's draws and a seed gives the same rolls again.
        delay = self._random.random() * self._max_delay
        fails = self._random.random() < die.error_rate
        face = self._random.choice(die.faces)
        # Even without a delay it gives way once, so that the rolls of a batch are all under way together.
        await asyncio.sleep(delay)
        if fails:
            raise RollFailed(f"The {die.name} die failed to roll.")
        return face

    async def roll_batch(self, die: Die, times: int, watch: WatchRoll) -> list[int | None]:
        """Roll ``times`` times at once, all to their end.

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
