"""Metrics: a registry a process, exemplars, and what every HTTP request leaves behind.

Follows https://prometheus.io/docs/practices/instrumentation/. Histograms carry the trace id of a recent
observation as an exemplar, visible to scrapers that ask for OpenMetrics.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from time import time
from typing import Any

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from otel import logs, spans, tracing

# Resolves 1 ms to 10 s.
DURATION_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0,
)  # fmt: skip

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "_OTHER"
UNMATCHED = "unmatched"


class _Dropped(Collector):
    """What this process had to say of itself and could not get rid of."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "telemetry_dropped", "Spans (traces) and log lines (logs) that were dropped.", labels=["signal"]
        )
        family.add_metric(["traces"], tracing.dropped())
        family.add_metric(["logs"], logs.dropped())
        yield family


def new_registry() -> CollectorRegistry:
    """A registry with the process's own figures (CPU, memory, garbage collection) in it."""
    # A *_created series for each counter would double /metrics and be read by nothing here.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Dropped())
    return registry


class Counter(prometheus_client.Counter):
    """The library's counter for one thread: without locks and checks of its labels, 0.3 µs a count instead of 2.5."""

    def labels(self, *labelvalues: str) -> Counter:  # type: ignore[override]
        child: Any = self._metrics.get(labelvalues)
        return child or super().labels(*labelvalues)

    def _metric_init(self) -> None:
        super()._metric_init()
        self._count = 0.0

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._count += amount

    def _child_samples(self) -> Iterable[Sample]:
        yield Sample("_total", {}, self._count, None, None)


class Gauge(prometheus_client.Gauge):
    """The library's gauge for one thread, like :class:`Counter`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._now = 0.0

    def inc(self, amount: float = 1) -> None:
        self._now += amount

    def dec(self, amount: float = 1) -> None:
        self._now -= amount

    def set(self, value: float) -> None:
        self._now = float(value)

    def _child_samples(self) -> Iterable[Sample]:
        yield Sample("", {}, self._now, None, None)


class Histogram(prometheus_client.Histogram):
    """The library's histogram, with the current span as exemplar of each observation; one thread may observe.

    Without the library's lock, search and validation an observation takes 1 µs instead of 6. A span that is not
    sampled is no exemplar: one that leads nowhere helps nobody.
    """

    def labels(self, *labelvalues: str) -> Histogram:  # type: ignore[override]
        child: Any = self._metrics.get(labelvalues)
        return child or super().labels(*labelvalues)

    def _metric_init(self) -> None:
        super()._metric_init()
        self._counts = [0] * len(self._upper_bounds)
        self._total = 0.0
        self._exemplars: list[tuple[int, float, float] | None] = [None] * len(self._upper_bounds)

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count ``amount``; a given ``exemplar`` is not taken, the current span is."""
        bucket = bisect_left(self._upper_bounds, amount)
        self._counts[bucket] += 1
        self._total += amount
        trace_id = spans.sampled_trace_id()
        if trace_id:
            self._exemplars[bucket] = (trace_id, amount, time())

    def _child_samples(self) -> Iterable[Sample]:
        count = 0
        for bound, more, seen in zip(self._upper_bounds, self._counts, self._exemplars, strict=True):
            count += more
            exemplar = Exemplar({"trace_id": f"{seen[0]:032x}"}, seen[1], seen[2]) if seen else None
            yield Sample("_bucket", {"le": floatToGoString(bound)}, count, None, exemplar)  # type: ignore[no-untyped-call]
        yield Sample("_count", {}, count, None, None)
        yield Sample("_sum", {}, self._total, None, None)


class HttpMetrics:
    """Counts requests and their durations by route template, method and status.

    Label values are bounded: ``handler`` is a template of a route or ``unmatched``, ``method`` one of
    HTTP's own or ``_OTHER``.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests_total",
            "HTTP requests answered, by route template, method and exact status code.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's arrival to its answer, by route template and method.",
            ["handler", "method"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )

    def expect(self, handler: str, method: str) -> None:
        """Make the series of a route exist, at zero, before its first request."""
        self._requests.labels(handler, method, "200")
        self._duration.labels(handler, method)

    def answered(self, handler: str, method: str, status: int, seconds: float | None) -> None:
        """Count one answer. ``seconds`` is ``None`` where a duration says nothing (an upgraded connection)."""
        if method not in METHODS:
            method = OTHER_METHOD
        self._requests.labels(handler, method, str(status)).inc()
        if seconds is not None:
            self._duration.labels(handler, method).observe(seconds)
