"""Metrics with ``prometheus_client``: counters, gauges and histograms of a registry that ``/metrics`` exposes.

Follows https://prometheus.io/docs/practices/instrumentation/. Usage::

    duration = Histogram("roll_duration_seconds", "Seconds a roll took.", registry=new_registry())
    duration.observe(0.25, exemplar())
"""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from otel.standard.dropped import DroppedTelemetry, dropped

__all__ = ["Counter", "Gauge", "Histogram", "exemplar", "new_registry"]


def exemplar() -> dict[str, str] | None:
    """The current trace's id, which leads from a bucket to a request that fell into it; ``None`` if it is not kept.

    Visible to scrapers that ask for the OpenMetrics format.
    """
    context = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.trace_flags.sampled else None


def new_registry(dropped: Callable[[], dict[str, int]] = dropped) -> CollectorRegistry:
    """A registry that already holds the process's own metrics: CPU, memory, garbage collection, dropped telemetry."""
    # A *_created series for each counter would double /metrics and nothing here reads it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(DroppedTelemetry(dropped))
    return registry
