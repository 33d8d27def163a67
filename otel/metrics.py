"""Metrics: a registry a process, exemplars, and what every HTTP request leaves behind.

Follows https://prometheus.io/docs/practices/instrumentation/. Histograms carry the trace id of a recent
observation as an exemplar, visible to scrapers that ask for OpenMetrics.
"""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry import trace
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from otel import logs, tracing

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


def exemplar() -> dict[str, str] | None:
    """The current span as an exemplar, if it is sampled: one that leads nowhere helps nobody."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return {"trace_id": format(context.trace_id, "032x")}


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
        # Bound once and kept: looking a label set up costs more than counting it.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def expect(self, handler: str, method: str) -> None:
        """Make the series of a route exist, at zero, before its first request."""
        self._counter(handler, method, 200)
        self._histogram(handler, method)

    def answered(self, handler: str, method: str, status: int, seconds: float | None) -> None:
        """Count one answer. ``seconds`` is ``None`` where a duration says nothing (an upgraded connection)."""
        if method not in METHODS:
            method = OTHER_METHOD
        self._counter(handler, method, status).inc()
        if seconds is not None:
            self._histogram(handler, method).observe(seconds, exemplar())

    def _counter(self, handler: str, method: str, status: int) -> Counter:
        key = (handler, method, status)
        if key not in self._counters:
            self._counters[key] = self._requests.labels(handler, method, str(status))
        return self._counters[key]

    def _histogram(self, handler: str, method: str) -> Histogram:
        key = (handler, method)
        if key not in self._histograms:
            self._histograms[key] = self._duration.labels(handler, method)
        return self._histograms[key]
