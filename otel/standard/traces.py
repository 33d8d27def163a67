"""Traces with the OpenTelemetry SDK, top to bottom: resource → provider → processor → exporter → instrumentors.

The standard variables work as OpenTelemetry documents them: ``OTEL_TRACES_EXPORTER`` (otlp, console, none),
``OTEL_EXPORTER_OTLP_*``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SPAN_*_LIMIT``, ``OTEL_BSP_*``, ``OTEL_PROPAGATORS``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SERVICE_NAME``, ``OTEL_SDK_DISABLED``, ``OTEL_SEMCONV_STABILITY_OPT_IN``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version

from aiohttp import ClientResponseError, ClientSession, TraceRequestEndParams, TraceRequestExceptionParams
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.aiopg import AiopgInstrumentor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import Attributes

from otel.standard import variables
from otel.standard.export import BoundedSpanProcessor, FileExporter, RetryingExporter, RotatingFile
from otel.standard.variables import TraceFile, TracingError

__all__ = [
    "TraceFile",
    "TracingError",
    "current_ids",
    "dropped",
    "instrument_session",
    "record_failure",
    "rename_span",
    "root_span",
    "set_attribute",
    "span",
    "start",
]

log = logging.getLogger(__name__)
# Kept, because making one takes as long as making a span. It makes spans of the provider that start() sets.
tracer = trace.get_tracer("dicelab")

# Seconds that a process waits at its end for its last spans to be exported.
FLUSH_TIMEOUT = 5.0

_processors: list[BoundedSpanProcessor] = []


def start(service: str, file: TraceFile | None = None, untraced_paths: Sequence[str] = ()) -> Callable[[], None]:
    """Set up this process's tracing. Call it once, before any application, client session or pool is created.

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
    # The sampler and the limits are those of OTEL_TRACES_SAMPLER and OTEL_SPAN_*_LIMIT.
    provider = TracerProvider(resource=resource(service, "standard"), shutdown_on_exit=False)
    for exporter in _exporters(provider.resource, file):
        processor = BoundedSpanProcessor(RetryingExporter(exporter), variables.batches())
        provider.add_span_processor(processor)
        _processors.append(processor)
    trace.set_tracer_provider(provider)
    # From here on each request that is served, each request that is made and each query has a span. The server's
    # instrumentor reads the paths to leave out from a variable only.
    os.environ.setdefault("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", ",".join(untraced_paths))
    AioHttpServerInstrumentor().instrument()
    AioHttpClientInstrumentor().instrument(response_hook=_record_server_error)
    AiopgInstrumentor().instrument()

    def stop() -> None:
        for processor in _processors:
            processor.stop_retrying()
        # In a daemon thread: a collector that does not answer must not keep the process alive.
        flushing = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT)
        if lost := sum(processor.lost_at_end() for processor in _processors):
            log.error("%s spans of this process were never exported", lost, extra={"fields": {}})

    return stop


def resource(service: str, telemetry: str) -> Resource:
    """The resource of the spans: this process. ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME`` take precedence.

    Args:
        telemetry: the package of :mod:`otel` that makes the spans.
    """
    ours: dict[str, str | int] = {
        "service.name": service,
        "service.namespace": "dicelab",
        "service.version": _version(),
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        "dicelab.telemetry": telemetry,
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())  # create() adds telemetry.sdk.*


def _version() -> str:
    try:
        return version("dicelab")
    except PackageNotFoundError:  # run from a directory without having been installed
        return "unknown"


def _exporters(resource: Resource, file: TraceFile | None) -> list[SpanExporter]:
    exporters: list[SpanExporter] = []
    for name in variables.exporter_names():
        if name == "console":
            exporters.append(ConsoleSpanExporter(out=sys.stderr))  # stdout is for log lines
        elif file is not None and not variables.otlp_endpoint():
            exporters.append(FileExporter(resource, RotatingFile(file.path, file.max_bytes, file.backups)))
        elif variables.otlp_protocol() == "grpc":
            # Imported here: it takes a quarter of a second and 20 MB.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

            exporters.append(GrpcSpanExporter(timeout=variables.otlp_timeout()))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

            from otel.standard.session import OneAttemptSession

            # The exporter's own retries wait for up to 32 s: RetryingExporter notices sooner that a collector is back.
            exporters.append(HttpSpanExporter(timeout=0.5, session=OneAttemptSession(variables.otlp_timeout())))
    return exporters


def _record_server_error(span: Span, params: TraceRequestEndParams | TraceRequestExceptionParams) -> None:
    """Add to the span of an answer of 500 and above the exception event that a request without answer has."""
    if isinstance(params, TraceRequestEndParams) and params.response.status >= 500:
        answer = params.response
        message = answer.reason or "server error"
        span.record_exception(ClientResponseError(answer.request_info, (), status=answer.status, message=message))


def span(name: str, attributes: Attributes = None) -> AbstractContextManager[Span]:
    """A business span around a block. An exception that leaves the block marks the span as failed."""
    return tracer.start_as_current_span(name, attributes=attributes)


def root_span(name: str) -> AbstractContextManager[Span]:
    """The root of a new trace, for work that does not start with an HTTP request."""
    return tracer.start_as_current_span(name, context=Context(), kind=SpanKind.SERVER)


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


def instrument_session(session: ClientSession) -> None:
    """Trace the requests of a client session. Nothing to do: the instrumentor traces all sessions."""


def dropped() -> int:
    """How many of this process's spans were dropped."""
    return sum(processor.dropped for processor in _processors)
