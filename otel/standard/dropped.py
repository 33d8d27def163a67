"""The metric ``telemetry_dropped_total``: the telemetry of this process that could not be delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from otel.standard import logs, traces


def dropped() -> dict[str, int]:
    """How many spans and lines were dropped, by signal."""
    return {"traces": traces.dropped(), "logs": logs.dropped()}


class DroppedTelemetry(Collector):
    """A collector, so the values are computed at each scrape."""

    def __init__(self, dropped: Callable[[], dict[str, int]]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "telemetry_dropped", "Spans (traces) and log lines (logs) that were dropped.", labels=["signal"]
        )
        for signal, count in self._dropped().items():
            family.add_metric([signal], count)
        yield family
