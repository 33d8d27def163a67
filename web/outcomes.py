"""How requests for rolls ended: what the service level objectives are counted from.

A die that fails by design answers 500 like any other failure, so no status code tells the two apart; the
outcome does, for single rolls and batches alike.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from otel import metrics
from web.problems import Problem

ROLL_FAILED = "roll-failed"  # the problem's kind

SUCCESS = "success"
DIE_FAILED = "die_failed"  # the die's own error rate, and nothing else
REFUSED = "refused"  # the caller's mistake: there is no such die
ERROR = "error"  # everything that is the service's fault
ABANDONED = "abandoned"  # the caller went away before the answer
OUTCOMES = (SUCCESS, DIE_FAILED, REFUSED, ERROR, ABANDONED)


class RollOutcomes:
    """Counts requests for rolls, a batch as one, by how they ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = metrics.Counter(
            "roll_requests_total",
            "Requests for a roll or a batch, by outcome: success, die_failed (the die's own error rate), refused"
            " (no such die), error (the service's fault) or abandoned (the caller went away).",
            ["outcome"],
            registry=registry,
        )
        self._counters = {outcome: requests.labels(outcome) for outcome in OUTCOMES}

    def request(self) -> RollOutcomes:
        """To be entered for one request whose parameters make sense."""
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._counters[_outcome(error)].inc()


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
