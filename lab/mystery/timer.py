"""The time that a player has, which can be paused."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timer:
    """Counts down.

    Args:
        seconds: the time limit.
        clock: the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used = 0.0
        self._since: float | None = clock()  # None while it is paused
        self.seconds = seconds

    @property
    def paused(self) -> bool:
        return self._since is None

    @property
    def used(self) -> float:
        """Seconds without the pauses."""
        return self._used + (0.0 if self._since is None else self._clock() - self._since)

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.used)

    def pause(self) -> None:
        self._used, self._since = self.used, None

    def resume(self) -> None:
        if self._since is None:
            self._since = self._clock()
