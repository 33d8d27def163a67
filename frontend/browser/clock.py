"""One clock for the whole page, in the browser's time zone; and the time range of all views."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

SECOND = 1_000_000_000  # nanoseconds
RANGES = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21600, "24h": 86400, "all": 0}  # seconds back from now; 0: no limit
RANGE_NAMES = {
    "5m": "last 5 minutes",
    "15m": "last 15 minutes",
    "1h": "last hour",
    "6h": "last 6 hours",
    "24h": "last 24 hours",
    "all": "all there is",
}
DEFAULT_RANGE = "1h"
_BETWEEN = re.compile(r"(\d{10,13})-(\d{10,13})")  # milliseconds since 1970


class Clock:
    """Formats times, given as nanoseconds since 1970."""

    def __init__(self) -> None:
        self._zone: tzinfo = UTC
        self._name = "UTC"

    def set_zone(self, name: object, offset_minutes: object) -> None:
        """Set the browser's zone by its IANA name, or by its offset if the name is unknown here."""
        try:
            self._zone, self._name = ZoneInfo(str(name)), str(name)
        except (ValueError, OSError, LookupError):
            minutes = offset_minutes if isinstance(offset_minutes, int) and abs(offset_minutes) < 24 * 60 else 0
            self._zone, self._name = timezone(timedelta(minutes=minutes)), ""

    @staticmethod
    def now() -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def _at(self, nanoseconds: float) -> datetime:
        return datetime.fromtimestamp(nanoseconds / SECOND, self._zone)

    def time(self, nanoseconds: float) -> str:
        """``14:03:05``."""
        return f"{self._at(nanoseconds):%H:%M:%S}"

    def exact(self, nanoseconds: float) -> str:
        """``14:03:05.678``."""
        at = self._at(nanoseconds)
        return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"

    def full(self, nanoseconds: float) -> str:
        """``2026-01-02 14:03:05.678``."""
        return f"{self._at(nanoseconds):%Y-%m-%d} {self.exact(nanoseconds)}"

    def local_input(self, nanoseconds: float) -> str:
        """The value for a ``datetime-local`` field."""
        return f"{self._at(nanoseconds):%Y-%m-%dT%H:%M:%S}"

    def parse_local(self, text: object) -> int | None:
        """Nanoseconds of the value of a ``datetime-local`` field, ``None`` for anything else."""
        try:
            return int(datetime.fromisoformat(str(text)).replace(tzinfo=self._zone).timestamp() * SECOND)
        except (ValueError, OverflowError):
            return None

    @property
    def zone(self) -> str:
        """``UTC+01:00, Europe/Berlin``."""
        offset = f"{datetime.now(self._zone):%z}"
        if offset in {"+0000", ""}:
            return "UTC"
        return f"UTC{offset[:3]}:{offset[3:]}" + (f", {self._name}" if self._name else "")


@dataclass(frozen=True)
class TimeRange:
    """A period up to now, or a fixed one. Times are nanoseconds since 1970."""

    last: str = DEFAULT_RANGE  # a key of RANGES; empty for a fixed period
    start: int = 0
    end: int = 0

    @classmethod
    def read(cls, text: object) -> TimeRange:
        """Parse the value in the address; anything invalid gives the default."""
        if text in RANGES:
            return cls(str(text))
        match = _BETWEEN.fullmatch(str(text))
        if match and int(match[1]) < int(match[2]):
            return cls("", int(match[1]) * 1_000_000, int(match[2]) * 1_000_000)
        return cls()

    def __str__(self) -> str:
        return self.last or f"{self.start // 1_000_000}-{self.end // 1_000_000}"

    def bounds(self) -> tuple[int, int]:
        """Start and end; 0 for no limit."""
        if not self.last:
            return self.start, self.end
        seconds = RANGES[self.last]
        return (int(time.time() - seconds) * SECOND if seconds else 0), 0

    def name(self, clock: Clock) -> str:
        """In words: ``last hour``, ``2026-01-02 14:03:05 to 14:04:05``."""
        if self.last:
            return RANGE_NAMES[self.last]
        start, end = clock.full(self.start)[:19], clock.full(self.end)[:19]
        return f"{start} to {end[11:] if start[:10] == end[:10] else end}"
