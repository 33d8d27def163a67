"""Everything observable of the dice-roller: its metrics, spans and log lines.

Spans: ``GET /roll`` and ``GET /roll-async`` (server, by the instrumentation) carry ``die.type``, ``die.result``
and ``die.error``; ``query die service``; ``async roll batch`` with one ``roll N`` for each of its rolls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry

from otel import logs, metrics, traces
from otel.http import DURATION_BUCKETS
from roller.dice import RollFailed
from web.outcomes import RollOutcomes

SERVICE = "dice-roller"
UNKNOWN = "unknown"
# One bucket for each face: a bucket minus the one before it is how often that face came up.
FACE_BUCKETS = (*range(0, 13), 20, 100)
# How requests to the die-service fail, as values of the label `status`.
FAILURES = ("404", "503", "504", "timeout", "connection_error")
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 1000)

_line = logs.events(SERVICE)


def started(port: int) -> None:
    _line(logging.INFO, "Dice roller started", port=port)


@dataclass(frozen=True, slots=True)
class DieSeries:
    """The series of one die, looked up once: a lookup by labels takes as long as a count."""

    succeeded: metrics.Counter
    failed: metrics.Counter
    values: metrics.Histogram


class RollTelemetry:
    """Rolls, one by one."""

    def __init__(self, registry: CollectorRegistry, dice: list[str]) -> None:
        self.outcomes = RollOutcomes(registry)
        self._rolls = metrics.Counter(
            "dice_rolls_total",
            "Dice rolled, one by one or in a batch, by die and result (success or error); a request for a die that does"
            " not exist is an error of the die 'unknown'.",
            ["die_type", "result"],
            registry=registry,
        )
        self._values = metrics.Histogram(
            "dice_roll_value",
            "Faces rolled, one bucket a face.",
            ["die_type"],
            buckets=FACE_BUCKETS,
            registry=registry,
        )
        self._series: dict[str, DieSeries] = {}
        self._rolls.labels(UNKNOWN, "error")
        for die in dice:
            self.expect(die)

    def expect(self, die: str) -> DieSeries:
        """The series of a die. Creates them, at zero, if they do not exist."""
        series = self._series.get(die)
        if series is None:
            series = self._series[die] = DieSeries(
                self._rolls.labels(die, "success"), self._rolls.labels(die, "error"), self._values.labels(die)
            )
        return series

    def requested(self, die: str) -> None:
        traces.set_attribute("die.type", die)
        _line(logging.INFO, "Roll requested", die_type=die)

    def unknown_die(self, die: str) -> None:
        self._rolls.labels(UNKNOWN, "error").inc()
        traces.set_attribute("die.error", "unknown die")
        _line(logging.WARNING, "Unknown die", die_type=die)

    def completed(self, die: str, face: int) -> None:
        series = self.expect(die)
        series.succeeded.inc()
        series.values.observe(face, metrics.exemplar())
        traces.set_attribute("die.result", face)
        _line(logging.INFO, "Roll completed", die_type=die, roll_value=face)

    def failed(self, die: str, error: RollFailed) -> None:
        self.expect(die).failed.inc()
        traces.set_attribute("die.error", str(error))
        _line(logging.ERROR, "Roll failed", die_type=die)


class BatchTelemetry:
    """Rolls, many at once."""

    def __init__(self, registry: CollectorRegistry, rolls: RollTelemetry, dice: list[str]) -> None:
        self._single = rolls
        self._rolls = metrics.Counter(
            "async_rolls_total",
            "Dice rolled in batches, by die and result; dice_rolls_total counts them too.",
            ["die_type", "result"],
            registry=registry,
        )
        self._size = metrics.Histogram(
            "async_roll_batch_size", "Rolls requested in one batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self._duration = metrics.Histogram(
            "async_roll_duration_seconds",
            "Seconds a whole batch of rolls took.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._in_progress = metrics.Gauge("async_rolls_in_progress", "Rolls of batches in progress.", registry=registry)
        for die in dice:
            self.expect(die)

    def expect(self, die: str) -> tuple[metrics.Counter, metrics.Counter]:
        """The counters of a die's successful and failed rolls. Creates them, at zero, if they do not exist."""
        return self._rolls.labels(die, "success"), self._rolls.labels(die, "error")

    @contextmanager
    def batch(self, die: str, size: int) -> Iterator[Batch]:
        """A context manager for a batch; raise :class:`RollFailed` in it if any of its rolls failed."""
        succeeded, failed = self.expect(die)
        exemplar = metrics.exemplar()
        self._size.observe(size, exemplar)
        started = perf_counter()
        with traces.span("async roll batch", {"async.batch_size": size}):
            _line(logging.INFO, "Batch started", die_type=die, async_batch_size=size)
            try:
                yield Batch(die, size, self._single.expect(die), succeeded, failed, self._in_progress, exemplar)
            except RollFailed as error:
                traces.set_attribute("die.error", str(error))
                _line(logging.ERROR, "Batch failed", die_type=die, async_batch_size=size)
                raise
            finally:
                self._duration.observe(perf_counter() - started, exemplar)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of rolls in progress, with the series that its rolls count in."""

    die: str
    size: int
    series: DieSeries
    succeeded: metrics.Counter
    failed: metrics.Counter
    in_progress: metrics.Gauge
    exemplar: Any  # the same for all rolls of a batch

    def roll(self, index: int) -> BatchRoll:
        """The context manager for the roll with this index, from 1; see :data:`roller.dice.WatchRoll`."""
        return BatchRoll(self, index)

    def completed(self, total: int) -> None:
        """Record the sum of the faces."""
        traces.set_attribute("async.total_result", total)
        _line(logging.INFO, "Batch completed", die_type=self.die, async_batch_size=self.size, async_total_result=total)


class BatchRoll:
    """The context manager for one roll of a batch. A class, because a generator takes twice as long for each roll."""

    __slots__ = ("_batch", "_context", "_index", "_span")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def __enter__(self) -> Callable[[int], None]:
        self._batch.in_progress.inc()
        self._context = traces.span(
            f"roll {self._index}", {"async.roll_index": self._index, "die.type": self._batch.die}
        )
        self._span = self._context.__enter__()
        return self._completed

    def _completed(self, face: int) -> None:
        batch = self._batch
        batch.series.succeeded.inc()
        batch.series.values.observe(face, batch.exemplar)
        batch.succeeded.inc()
        self._span.set_attribute("die.result", face)
        _line(
            logging.INFO,
            "Roll of a batch completed",
            die_type=batch.die,
            roll_value=face,
            async_batch_size=batch.size,
            async_roll_index=self._index,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RollFailed):
            self._failed(error)
        self._context.__exit__(kind, error, traceback)
        self._batch.in_progress.dec()

    def _failed(self, error: RollFailed) -> None:
        batch = self._batch
        batch.series.failed.inc()
        batch.failed.inc()
        self._span.set_attribute("die.error", str(error))
        _line(
            logging.ERROR,
            "Roll of a batch failed",
            die_type=batch.die,
            async_batch_size=batch.size,
            async_roll_index=self._index,
        )


class DieServiceTelemetry:
    """Requests to the die-service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = metrics.Counter(
            "die_service_requests_total",
            "Requests to the die-service, by die (one it has confirmed, else 'unknown') and by"
            " HTTP status, 'timeout' or 'connection_error'.",
            ["identifier", "status"],
            registry=registry,
        )
        self._duration = metrics.Histogram(
            "die_service_request_duration_seconds",
            "Seconds from a request to the die-service to its response or failure.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        # Only names that the die-service has confirmed become label values.
        self._confirmed: set[str] = set()
        self._expect(UNKNOWN, FAILURES)

    def _expect(self, identifier: str, statuses: Sequence[str]) -> None:
        """Create the series at zero: ``increase()`` misses the first increment of a series that appears with it."""
        for status in statuses:
            self._requests.labels(identifier, status)

    @contextmanager
    def query(self) -> Iterator[None]:
        """A span around the one request that a batch makes."""
        with traces.span("query die service"):
            yield

    def requested(self, name: str) -> None:
        _line(logging.INFO, "Querying die service", die_identifier=name)

    def found(self, name: str, seconds: float) -> None:
        if name not in self._confirmed:
            self._confirmed.add(name)
            self._expect(name, ("200", *FAILURES))
        self._count(name, 200, seconds)

    def not_found(self, name: str, seconds: float) -> None:
        self._confirmed.discard(name)
        self._count(name, 404, seconds)
        _line(logging.WARNING, "Die service error", die_identifier=name, die_found=False)

    def failed(self, name: str, status: int | str, seconds: float) -> None:
        self._count(name, status, seconds)
        _line(
            logging.WARNING,
            "Die service error",
            die_identifier=name,
            die_found=False,
            die_service_status=str(status),
        )

    def _count(self, name: str, status: int | str, seconds: float) -> None:
        identifier = name if name in self._confirmed else UNKNOWN
        self._requests.labels(identifier, str(status)).inc()
        self._duration.observe(seconds, metrics.exemplar())
