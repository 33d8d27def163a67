"""Metrics for one thread, exposed by ``prometheus_client``: a count takes 0.3 µs, not 2.5; an observation 1 µs, not 6.

The library's classes take a lock and check labels and values each time. These keep plain numbers and are collectors of
its registry, which is its public extension point. Values may be changed by the event loop's thread only.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from time import time
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from otel.fast import logs, spans, traces
from otel.standard import metrics as standard

# The trace id of the current span if its trace is kept, else empty: what ``Histogram.observe`` takes as an exemplar.
exemplar = spans.sampled_trace_id


def new_registry() -> CollectorRegistry:
    """A registry that already holds the process's own metrics: CPU, memory, garbage collection, dropped telemetry."""
    return standard.new_registry(lambda: {"traces": traces.dropped(), "logs": logs.dropped()})


class _Family(Collector):
    """A metric family with or without labels, or one series of a family with labels."""

    kind = ""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), registry: CollectorRegistry | None = None
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._series: dict[tuple[str, ...], Any] = {} if labelnames else {(): self}
        self._reset()
        if registry is not None:
            registry.register(self)

    def labels(self, *values: str) -> Self:
        """The series with these label values. Creates it, at zero, if it does not exist."""
        series: Self | None = self._series.get(values)
        return series or self._new(values)

    def _new(self, values: tuple[object, ...]) -> Self:
        if len(values) != len(self._labelnames):
            raise ValueError(f"{self._name} has the labels {self._labelnames}, not {len(values)} of them")
        texts = tuple(map(str, values))
        if texts not in self._series:
            self._series[texts] = self._one()
        series: Self = self._series[texts]
        return series

    def _one(self) -> Self:
        return type(self)(self._name, self._documentation)

    def collect(self) -> Iterator[Metric]:
        family = Metric(
            self._name.removesuffix("_total") if self.kind == "counter" else self._name, self._documentation, self.kind
        )
        for values, series in list(self._series.items()):
            labels = dict(zip(self._labelnames, values, strict=True))
            for suffix, more, value, seen in series._samples():
                family.add_sample(family.name + suffix, labels | more, value, None, seen)
        yield family

    @abstractmethod
    def _reset(self) -> None:
        """Set the value to zero."""

    @abstractmethod
    def _samples(self) -> Iterator[tuple[str, dict[str, str], float, Exemplar | None]]:
        """The samples of one series: suffix of the name, further labels, value, exemplar."""


class Counter(_Family):
    kind = "counter"

    def _reset(self) -> None:
        self._value = 0.0

    def inc(self, amount: float = 1) -> None:
        self._value += amount

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float, Exemplar | None]]:
        yield "_total", {}, self._value, None


class Gauge(_Family):
    kind = "gauge"

    def _reset(self) -> None:
        self._value = 0.0
        self._function: Callable[[], float] | None = None

    def inc(self, amount: float = 1) -> None:
        self._value += amount

    def dec(self, amount: float = 1) -> None:
        self._value -= amount

    def set(self, value: float) -> None:
        self._value = float(value)

    def set_function(self, function: Callable[[], float]) -> None:
        """Ask ``function`` for the value at each scrape."""
        self._function = function

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float, Exemplar | None]]:
        yield "", {}, float(self._function()) if self._function else self._value, None


class Histogram(_Family):
    kind = "histogram"
    DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        registry: CollectorRegistry | None = None,
        buckets: Iterable[float] = DEFAULT_BUCKETS,
    ) -> None:
        self._bounds = (*(float(bound) for bound in buckets if bound != inf), inf)
        super().__init__(name, documentation, labelnames, registry)

    def _one(self) -> Self:
        return type(self)(self._name, self._documentation, buckets=self._bounds)

    def _reset(self) -> None:
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._exemplars: list[tuple[str, float, float] | None] = [None] * len(self._bounds)

    def observe(self, amount: float, exemplar: str = "") -> None:
        """Count ``amount``; ``exemplar`` is what :func:`exemplar` returned."""
        bucket = bisect_left(self._bounds, amount)
        self._counts[bucket] += 1
        self._sum += amount
        if exemplar:
            self._exemplars[bucket] = (exemplar, amount, time())

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float, Exemplar | None]]:
        total = 0.0
        for bound, count, seen in zip(self._bounds, self._counts, self._exemplars, strict=True):
            total += count
            exemplar = Exemplar({"trace_id": seen[0]}, seen[1], seen[2]) if seen else None
            yield "_bucket", {"le": floatToGoString(bound)}, total, exemplar  # type: ignore[no-untyped-call]
        yield "_count", {}, total, None
        yield "_sum", {}, self._sum, None
