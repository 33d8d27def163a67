"""Latencies and their percentiles, in an HdrHistogram."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from hdrh.histogram import HdrHistogram

MAX_SECONDS = 3600.0  # longer latencies are recorded as this
DIGITS = 3  # significant digits that the histogram keeps
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Latencies:
    """A distribution of latencies, in seconds, from a microsecond to an hour."""

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self._histogram = HdrHistogram(1, int(MAX_SECONDS * 1e6), DIGITS)  # microseconds
        for one in seconds:
            self.add(one)

    def add(self, seconds: float) -> None:
        self._histogram.record_value(min(max(1, round(seconds * 1e6)), int(MAX_SECONDS * 1e6)))

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def percentile(self, percent: float) -> float:
        """The latency, in seconds, that so many per cent of the requests do not exceed; 0 without requests."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e6

    def summary(self) -> dict[str, float]:
        """Milliseconds by name: ``p50`` … ``p99.9``, ``mean``, ``max``; empty where there are no latencies."""
        if not len(self):
            return {}
        found = {f"p{percent:g}": self.percentile(percent) * 1000 for percent in PERCENTILES}
        found |= {"mean": self._histogram.get_mean_value() / 1000, "max": self._histogram.get_max_value() / 1000}
        return {name: round(value, 3) for name, value in found.items()}

    def corrected(self, interval: float) -> Self:
        """A copy corrected for coordinated omission: it adds the requests that were not sent because of a stall.

        Args:
            interval: seconds between two requests of a user without stalls.
        """
        corrected = type(self)()
        step = max(1, round(interval * 1e6))
        for item in self._histogram.get_recorded_iterator():
            # The definition of HdrHistogram. The Python library's own method also adds values below the interval, which
            # lowers the percentiles.
            for value in range(item.value_iterated_to, step - 1, -step):
                corrected._histogram.record_value(value, item.count_added_in_this_iter_step)
            if item.value_iterated_to < step:
                corrected._histogram.record_value(item.value_iterated_to, item.count_added_in_this_iter_step)
        return corrected
