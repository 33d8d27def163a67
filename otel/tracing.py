"""Traces: one tracer provider a process, set up from the standard ``OTEL_*`` variables.

What OpenTelemetry documents works as documented: ``OTEL_TRACES_EXPORTER`` (otlp, console, none),
``OTEL_EXPORTER_OTLP_*`` (endpoint, protocol, headers, ...), ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``,
``OTEL_PROPAGATORS``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SERVICE_NAME``, ``OTEL_SDK_DISABLED``.
Without an OTLP endpoint spans can go to a file instead, as OTLP JSON, one export a line.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, cast

from aiohttp import ClientResponseError, TraceConfig, TraceRequestEndParams, TraceRequestExceptionParams
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.aiopg import AiopgInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

log = logging.getLogger(__name__)

# The SDK's own defaults (5 s, 2048 spans) keep a roll out of sight for seconds and lose spans under a
# load this lab is made for. 16384 waiting spans are some 40 MB, the bound when the collector is away.
EXPORT_DELAY_MS = 1000
MAX_WAITING_SPANS = 16_384
EXPORT_BATCH = 512
# A batch that is not taken is sent again every second, for five minutes: a collector that restarts loses
# nothing, and a batch that no receiver will ever take does not hold up the others for ever.
RETRY_INTERVAL = 1.0
RETRY_FOR = 300.0
# How long, in seconds, the end of a process waits for its last spans to leave.
FLUSH_TIMEOUT = 5.0


class TracingError(ValueError):
    """An ``OTEL_*`` variable that cannot be followed."""


@dataclass(frozen=True)
class TraceFile:
    """Where spans go when no OTLP endpoint is given: ``path``, rotated at ``max_bytes``, ``backups`` old ones kept."""

    path: Path
    max_bytes: int
    backups: int


class _RotatingStream:
    """The text stream that the file exporter writes to: whole lines, rotated by size.

    The rotation is ``logging``'s own; each ``write`` is one line.
    """

    def __init__(self, file: TraceFile) -> None:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = RotatingFileHandler(
            file.path, maxBytes=file.max_bytes, backupCount=file.backups, encoding="utf-8"
        )
        self.closed = False

    def write(self, line: str) -> int:
        self._handler.emit(logging.makeLogRecord({"msg": line.rstrip("\n")}))
        return len(line)

    def flush(self) -> None:
        self._handler.flush()

    def close(self) -> None:
        self.closed = True
        self._handler.close()


class SpanQueue(SpanProcessor):
    """Hands finished spans to an exporter, in batches, from a thread of its own.

    The SDK's BatchSpanProcessor gives a batch up once its exporter has failed, and keeps no count. Here a
    failed batch is sent again while up to ``capacity`` spans wait behind it; those that find no room, and
    those that cannot be sent at the end, are counted in ``dropped``.
    """

    def __init__(self, exporter: SpanExporter, *, capacity: int, delay: float, batch: int) -> None:
        """``delay`` is how long, in seconds, spans wait for a batch of ``batch`` to fill."""
        self._exporter = exporter
        self._capacity = capacity
        self._delay = delay
        self._batch = batch
        # A deque's append and popleft are atomic: no lock between the event loop and the thread.
        self._spans: deque[ReadableSpan] = deque()
        self.dropped = 0
        self._reported = 0
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="span-queue", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        if len(self._spans) >= self._capacity or self._stopping.is_set():
            self.dropped += 1
            return
        self._spans.append(span)
        if len(self._spans) >= self._batch and not self._filled.is_set():
            self._filled.set()

    def shutdown(self) -> None:
        """Send what is waiting; gives up after :data:`FLUSH_TIMEOUT` seconds."""
        self._stopping.set()
        self._filled.set()
        self._thread.join(FLUSH_TIMEOUT)
        self._exporter.shutdown()  # ends an attempt that is under way, too
        self._thread.join(1)
        self.dropped += len(self._spans)

    def _run(self) -> None:
        while not (self._stopping.is_set() and not self._spans):
            self._filled.wait(self._delay)
            # Cleared before the spans are taken: a span added in between sets it again.
            self._filled.clear()
            for _ in range(0, len(self._spans), self._batch):
                self._send([self._spans.popleft() for _ in range(min(self._batch, len(self._spans)))])
            self._report()

    def _report(self) -> None:
        if lost := self.dropped - self._reported:
            log.error("%s spans dropped", lost, extra={"fields": {}})
            self._reported += lost

    def _send(self, spans: list[ReadableSpan]) -> None:
        deadline = time.monotonic() + RETRY_FOR
        while True:
            try:
                if self._exporter.export(spans) is SpanExportResult.SUCCESS:
                    return
            except Exception:
                log.exception("Spans not exported", extra={"fields": {}})
            if self._stopping.is_set() or time.monotonic() > deadline:
                self.dropped += len(spans)
                return
            self._report()
            self._stopping.wait(RETRY_INTERVAL)


_queues: list[SpanQueue] = []


def dropped() -> int:
    """How many of this process's spans were dropped."""
    return sum(queue.dropped for queue in _queues)


def _exporters(environ: Mapping[str, str], file: TraceFile | None) -> list[SpanExporter]:
    chosen = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    exporters: list[SpanExporter] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name == "none":
            continue
        elif name == "console":  # stderr: stdout belongs to the logs
            exporters.append(ConsoleSpanExporter(out=sys.stderr))
        elif name == "otlp":
            exporters.append(_otlp_exporter(environ, file))
        else:
            raise TracingError(f"OTEL_TRACES_EXPORTER={name!r}: must be otlp, console or none")
    return exporters


def _otlp_exporter(environ: Mapping[str, str], file: TraceFile | None) -> SpanExporter:
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if file is not None and not endpoint:
        from opentelemetry.exporter.otlp.json.file import FileSpanExporter

        return FileSpanExporter(stream=cast(IO[str], _RotatingStream(file)))
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    # Imported where they are needed: the gRPC one alone costs a quarter of a second and 20 MB.
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter()
    raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: must be http/protobuf or grpc")


def _queue(environ: Mapping[str, str], exporter: SpanExporter) -> SpanQueue:
    def whole(name: str, default: int) -> int:
        value = environ.get(name, "").strip() or str(default)
        if not value.isdecimal() or int(value) == 0:
            raise TracingError(f"{name}={value!r}: must be a whole number above 0")
        return int(value)

    capacity = whole("OTEL_BSP_MAX_QUEUE_SIZE", MAX_WAITING_SPANS)
    return SpanQueue(
        exporter,
        capacity=capacity,
        delay=whole("OTEL_BSP_SCHEDULE_DELAY", EXPORT_DELAY_MS) / 1000,
        batch=min(capacity, whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", EXPORT_BATCH)),
    )


def start(
    service: str,
    *,
    file: TraceFile | None = None,
    untraced_paths: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Callable[[], None]:
    """Set up this process's tracing; call it once, before any application or database pool is made.

    Args:
        service: the ``service.name``, unless ``OTEL_SERVICE_NAME`` says another.
        file: where spans go when no OTLP endpoint is set; ``None`` keeps the standard default endpoint.
        untraced_paths: regular expressions of request paths that get no span.
        environ: the variables to follow.

    Returns:
        A function that flushes the last spans, trying for :data:`FLUSH_TIMEOUT` seconds.

    Raises:
        TracingError: when a variable names what does not exist, or is no number where one is due.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return lambda: None
    attributes = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for exporter in _exporters(environ, file):
        queue = _queue(environ, exporter)
        _queues.append(queue)
        provider.add_span_processor(queue)
    trace.set_tracer_provider(provider)
    # The instrumentation takes its exclusions from the environment only.
    os.environ.setdefault("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", ",".join(untraced_paths))
    AioHttpServerInstrumentor().instrument()
    AiopgInstrumentor().instrument()

    def stop() -> None:
        # A thread that dies with the process: a collector that is away must not hold up the end.
        flushing = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT + 2)
        if lost := dropped():
            log.error("%s spans of this process were never exported", lost, extra={"fields": {}})

    return stop


def client_trace_config() -> TraceConfig:
    """The aiohttp client tracing for a session: a span a request, the trace context sent along.

    An answer of 500 or above leaves the exception event that a failed call leaves anyway.
    """
    return create_trace_config(response_hook=_record_failed_answer)


def _record_failed_answer(span: Span, params: TraceRequestEndParams | TraceRequestExceptionParams) -> None:
    if isinstance(params, TraceRequestEndParams) and params.response.status >= 500:
        response = params.response
        span.record_exception(
            ClientResponseError(
                response.request_info, (), status=response.status, message=response.reason or "server error"
            )
        )


def current_trace_id() -> str | None:
    """The 32 hex digits of the current span's trace, or ``None`` outside a span."""
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


def set_attributes(**attributes: str | int | float | bool) -> None:
    """Set attributes on the current span; ``die_type=...`` becomes ``die.type``."""
    span = trace.get_current_span()
    for name, value in attributes.items():
        span.set_attribute(name.replace("_", ".", 1), value)


def record_failure(error: BaseException) -> None:
    """Mark the current span as failed because of ``error``: status ERROR and the exception event."""
    span = trace.get_current_span()
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


@contextmanager
def span(name: str, **attributes: str | int | float | bool) -> Iterator[Span]:
    """A business span around a block; ``async_batch_size=10`` becomes ``async.batch_size``.

    An exception that leaves the block marks the span as failed.
    """
    named = {key.replace("_", ".", 1): value for key, value in attributes.items()}
    with trace.get_tracer("dicelab").start_as_current_span(name, attributes=named) as current:
        yield current


@contextmanager
def root_span(name: str, **attributes: str | int | float | bool) -> Iterator[Span]:
    """The root of a new trace, for something that a user starts other than by an HTTP request."""
    named = {key.replace("_", ".", 1): value for key, value in attributes.items()}
    with trace.get_tracer("dicelab").start_as_current_span(
        name, context=Context(), kind=SpanKind.SERVER, attributes=named
    ) as current:
        yield current


def rename_span(name: str) -> None:
    """Give the current span another name than its instrumentation did."""
    trace.get_current_span().update_name(name)
