"""Traces: one tracer provider a process, set up from the standard ``OTEL_*`` variables.

What OpenTelemetry documents works as documented: ``OTEL_TRACES_EXPORTER`` (otlp, console, none),
``OTEL_EXPORTER_OTLP_*`` (endpoint, protocol, headers, ...), ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``,
``OTEL_PROPAGATORS``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SERVICE_NAME``, ``OTEL_SDK_DISABLED``.
Without an OTLP endpoint spans can go to a file instead, as OTLP JSON, one export a line.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import Attributes

from otel.fast import http_client, http_server, spans, sql
from otel.fast.exporters import exporters
from otel.fast.queue import Exporter, SpanQueue
from otel.standard import variables
from otel.standard.processor import FLUSH_TIMEOUT
from otel.standard.traces import record_failure, rename_span, resource
from otel.standard.variables import TraceFile, TracingError

__all__ = ["TraceFile", "TracingError", "record_failure", "rename_span"]  # exported besides what is defined here

log = logging.getLogger(__name__)

_queues: list[SpanQueue] = []


def dropped() -> int:
    """How many of this process's spans were dropped."""
    return sum(queue.dropped for queue in _queues)


def _queue(exporter: Exporter) -> SpanQueue:
    batches = variables.batches()
    return SpanQueue(
        exporter,
        capacity=batches["max_queue_size"],
        delay=batches["schedule_delay_millis"] / 1000,
        batch=batches["max_export_batch_size"],
    )


def start(service: str, file: TraceFile | None = None, untraced_paths: Sequence[str] = ()) -> Callable[[], None]:
    """Set up this process's tracing; call it once, before any application or database pool is created.

    Args:
        service: the ``service.name``, unless ``OTEL_SERVICE_NAME`` is set.
        file: where spans go when no OTLP endpoint is set; ``None``: to the exporter's default endpoint.
        untraced_paths: regular expressions of request paths that get no span.

    Returns:
        A function that exports the last spans, for at most :data:`FLUSH_TIMEOUT` seconds.

    Raises:
        TracingError: when a variable has a value that cannot be used.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return lambda: None
    about = resource(service, "fast")
    provider = spans.LeanTracerProvider(about)
    queues = [_queue(exporter) for exporter in exporters(about, file)]
    for queue in queues:
        provider.add_sink(queue.add)
    _queues.extend(queues)
    trace.set_tracer_provider(provider)
    # The instrumentation reads its exclusions from the environment only.
    os.environ.setdefault("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", ",".join(untraced_paths))
    http_server.instrument()
    sql.instrument()

    def flush() -> None:
        for queue in queues:
            queue.shutdown()

    def stop() -> None:
        # In a daemon thread: a collector that does not respond must not keep the process alive.
        flushing = threading.Thread(target=flush, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT + 2)
        if lost := dropped():
            log.error("%s spans of this process were never exported", lost, extra={"fields": {}})

    return stop


# Traces an aiohttp client session.
instrument_session = http_client.instrument_session


@lru_cache(1)
def _tracer() -> Tracer:
    """The tracer of our own spans. Cached, because a lookup takes longer than creating a span."""
    return trace.get_tracer("dicelab")


def current_ids() -> tuple[str, str]:
    """The current span's trace id (32 hex digits) and span id (16), both empty outside a span."""
    return spans.hex_ids(spans.current_span()) or ("", "")


def set_attribute(key: str, value: str | int | float | bool) -> None:
    """Set an attribute on the current span."""
    span = spans.current()
    if span is not None:
        span.set_attribute(key, value)


def span(name: str, attributes: Attributes = None) -> AbstractContextManager[Span]:
    """A business span around a block. An exception that leaves the block marks the span as failed."""
    return spans.Active(_tracer().start_span(name, attributes=attributes))


def root_span(name: str) -> AbstractContextManager[Span]:
    """The root of a new trace, for work that does not start with an HTTP request."""
    return _tracer().start_as_current_span(name, context=Context(), kind=SpanKind.SERVER)
