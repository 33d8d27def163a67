"""Traces with the OpenTelemetry SDK, top to bottom: resource → provider → processor → exporter → instrumentors.

The standard variables work as OpenTelemetry documents them: ``OTEL_TRACES_EXPORTER`` (otlp, console, none),
``OTEL_EXPORTER_OTLP_*``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SPAN_*_LIMIT``, ``OTEL_BSP_*``, ``OTEL_PROPAGATORS``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SERVICE_NAME``, ``OTEL_SDK_DISABLED``, ``OTEL_SEMCONV_STABILITY_OPT_IN``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib import metadata

from aiohttp import ClientSession
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.aiopg import AiopgInstrumentor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import Attributes

from otel.standard import variables
from otel.standard.exporters import exporters
from otel.standard.hooks import record_server_error
from otel.standard.processor import BoundedSpanProcessor, RetryingExporter, dropped, shut_down
from otel.standard.variables import TraceFile, TracingError

__all__ = ["TraceFile", "TracingError", "dropped"]  # exported besides what is defined here


@cache
def tracer() -> Tracer:
    """The tracer of our own spans. Cached, because creating a tracer takes as long as creating a span."""
    return trace.get_tracer("dicelab")


def start(service: str, file: TraceFile | None = None, untraced_paths: Sequence[str] = ()) -> Callable[[], None]:
    """Set up this process's tracing. Call it once, before any application, client session or pool is created.

    Args:
        service: the ``service.name``, unless ``OTEL_SERVICE_NAME`` is set.
        file: where spans go when no OTLP endpoint is set; ``None``: to the exporter's default endpoint.
        untraced_paths: regular expressions of request paths that get no span.

    Returns:
        A function that exports the last spans, for a few seconds at most.

    Raises:
        TracingError: when a variable has a value that cannot be used.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return lambda: None
    # The sampler and the limits are those of OTEL_TRACES_SAMPLER and OTEL_SPAN_*_LIMIT.
    provider = TracerProvider(resource=resource(service, "standard"), shutdown_on_exit=False)
    for exporter in exporters(provider.resource, file):
        provider.add_span_processor(BoundedSpanProcessor(RetryingExporter(exporter), variables.batches()))
    trace.set_tracer_provider(provider)
    # From here on each incoming request, each outgoing request and each query has a span. The server's instrumentor
    # reads the excluded paths from a variable only.
    os.environ.setdefault("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", ",".join(untraced_paths))
    AioHttpServerInstrumentor().instrument()
    AioHttpClientInstrumentor().instrument(response_hook=record_server_error)
    AiopgInstrumentor().instrument()
    return partial(shut_down, provider)


def resource(service: str, telemetry: str) -> Resource:
    """The resource of the spans: this process. ``telemetry`` is the package of :mod:`otel` that makes the spans."""
    try:
        version = metadata.version("dicelab")
    except metadata.PackageNotFoundError:  # run from a directory without having been installed
        version = "unknown"
    ours: dict[str, str | int] = {
        "service.name": service,
        "service.namespace": "dicelab",
        "service.version": version,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        "dicelab.telemetry": telemetry,
    }
    # create() adds telemetry.sdk.*; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME take precedence over ours.
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def instrument_session(session: ClientSession) -> ClientSession:
    """The session itself, because the instrumentor already traces all sessions."""
    return session


def span(name: str, attributes: Attributes = None) -> AbstractContextManager[Span]:
    """A business span around a block. An exception that leaves the block marks the span as failed."""
    # What start_as_current_span() does, with one context manager instead of two.
    return trace.use_span(tracer().start_span(name, attributes=attributes), end_on_exit=True)


def root_span(name: str) -> AbstractContextManager[Span]:
    """The root of a new trace, for work that does not start with an HTTP request."""
    return tracer().start_as_current_span(name, context=Context(), kind=SpanKind.SERVER)


def rename_span(name: str) -> None:
    """Give the current span another name than its instrumentation did."""
    trace.get_current_span().update_name(name)


def set_attribute(key: str, value: str | int | float | bool) -> None:
    """Set an attribute on the current span."""
    trace.get_current_span().set_attribute(key, value)


def record_failure(error: BaseException) -> None:
    """Mark the current span as failed because of ``error``: status ERROR and the exception event."""
    span = trace.get_current_span()
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def current_ids() -> tuple[str, str]:
    """The current span's trace id (32 hex digits) and span id (16), both empty outside a span."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return "", ""
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
