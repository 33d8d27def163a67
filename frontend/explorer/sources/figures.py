"""The figures of the lab, independent of their source."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Protocol

PERCENTILES = (0.5, 0.95, 0.99)
ENOUGH = 20  # requests below which a percentile is no better than a mean
STATIC = "/static/{path}"  # files of the page, which would hide everything else
OWN_ROLLS = ("/roll", "/roll-async")  # of the frontend: another metric counts them together with the rolls of the page
AVAILABILITY, LATENCY, LATENCY_LIMIT = 0.995, 0.99, 1.5  # the objectives; the limit in seconds
SERVED = ("success", "die_failed", "error")  # outcomes of rolls that count for availability

Buckets = dict[float, float]  # cumulative counts of a histogram, by upper bound


@dataclass(frozen=True)
class Objective:
    """A service level objective and what happened: ``bad`` of ``total`` requests missed it."""

    name: str
    target: float
    bad: float
    total: float

    @property
    def remaining(self) -> float:
        """The share of the error budget that is left; below 0 when more was spent than there is."""
        allowed = (1 - self.target) * self.total
        return 1 - self.bad / allowed if allowed else 1.0


@dataclass
class Figures:
    """The content of the metrics view. Rates are per second, latencies in seconds; NaN for a missing value.

    Attributes:
        times: seconds since 1970, ascending; every series has a value for each of them.
        latency: by percentile, then by service; NaN where fewer than :data:`ENOUGH` requests were measured.
        mean: mean latency by service.
        faces: how often each face of a die has come up so far.
        rolls: how many rolls of a die succeeded, and how many failed.
        rates_over: the period that a rate covers, in words; likewise for latencies and objectives.
        every: seconds between two readings.
    """

    times: list[float] = field(default_factory=list)
    rate: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    latency: dict[float, dict[str, list[float]]] = field(default_factory=dict)
    mean: dict[str, list[float]] = field(default_factory=dict)
    in_progress: list[float] = field(default_factory=list)
    pool_size: list[float] = field(default_factory=list)
    pool_used: list[float] = field(default_factory=list)
    faces: dict[str, dict[int, float]] = field(default_factory=dict)
    rolls: dict[str, tuple[float, float]] = field(default_factory=dict)
    objectives: list[Objective] = field(default_factory=list)
    rates_over: str = ""
    latency_over: str = ""
    objectives_over: str = ""
    every: float = 0.0


class MetricSource(Protocol):
    name: str

    async def figures(self, since: int, until: int) -> Figures:
        """The figures between two points in time, nanoseconds since 1970; 0 where there is no limit.

        Raises:
            SourceError: when they are not available.
        """


def objectives(outcomes: dict[str, float], timed: float, in_time: float) -> list[Objective]:
    """The objectives, from the rolls by outcome, the number of timed rolls, and how many of these were in time."""
    return [
        Objective(
            "rolls that do not fail through the service's fault",
            AVAILABILITY,
            outcomes.get("error", 0.0),
            sum(outcomes.get(outcome, 0.0) for outcome in SERVED),
        ),
        Objective(f"rolls served within {LATENCY_LIMIT:g} s", LATENCY, max(0.0, timed - in_time), timed),
    ]


def quantile(percentile: float, buckets: Buckets) -> float:
    """The result of Prometheus's ``histogram_quantile`` for these buckets; NaN if they are empty."""
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]
    if not counts or counts[-1] <= 0:
        return math.nan
    rank = percentile * counts[-1]
    place = bisect_left(counts, rank)
    if math.isinf(bounds[place]):
        return bounds[place - 1] if place else math.nan
    low, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    within = counts[place] - below
    return low + (bounds[place] - low) * ((rank - below) / within if within else 0.0)


def faces_of(buckets: Buckets) -> dict[int, float]:
    """How often each face came up, from a histogram with a bucket for each face."""
    faces: dict[int, float] = {}
    below = 0.0
    for bound in sorted(buckets):
        if buckets[bound] > below and not math.isinf(bound):
            faces[int(bound)] = buckets[bound] - below
        below = max(below, buckets[bound])
    return faces
