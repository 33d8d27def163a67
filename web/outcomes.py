"""Outcomes of requests for rolls, from which the service level objectives are calculated.

A roll that fails by design returns 500, as every other failure does. The outcome distinguishes the two, for single
rolls and for batches.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from prometheus_client import CollectorRegistry

from otel import metrics
from web.problems import Problem

ROLL_FAILED = "roll-failed"  # the problem's kind

SUCCESS = "success"
DIE_FAILED = "die_failed"  # the die's own error rate, and nothing else
REFUSED = "refused"  # the caller's error: no die has this name
ERROR = "error"  # any fault of the service
ABANDONED = "abandoned"  # the client disconnected before the response
# 1.5 s is the limit of the latency objective. The smallest are for failures, which can be much faster than rolls.
DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)
OUTCOMES = (SUCCESS, DIE_FAILED, REFUSED, ERROR, ABANDONED)


class RollOutcomes:
    """Counts and times requests for rolls, a batch as one, by how they ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = metrics.Counter(
            "roll_requests_total",
            "Requests for a roll or a batch, by outcome: success, die_failed (the die's own error rate), refused"
            " (no such die), error (the service's fault) or abandoned (the caller disconnected).",
            ["outcome"],
            registry=registry,
        )
        durations = metrics.Histogram(
            "roll_request_duration_seconds",
            "Seconds from a request for a roll or a batch to its end, by outcome as in roll_requests_total.",
            ["outcome"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.metrics = {outcome: (requests.labels(outcome), durations.labels(outcome)) for outcome in OUTCOMES}

    def request(self) -> _Request:
        """A context manager for one request with valid parameters; its end counts the outcome."""
        return _Request(self)


class _Request:
    """Counts and times one request."""

    __slots__ = ("_outcomes", "_started")

    def __init__(self, outcomes: RollOutcomes) -> None:
        self._outcomes = outcomes

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        requests, durations = self._outcomes.metrics[_outcome(error)]
        requests.inc()
        durations.observe(perf_counter() - self._started, metrics.exemplar())


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return SUCCESS
    if isinstance(error, asyncio.CancelledError):
        return ABANDONED
    if isinstance(error, Problem):
        if error.kind == ROLL_FAILED:
            return DIE_FAILED
        if error.status < 500:
            return REFUSED
    return ERROR
