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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.aiopg import AiopgInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import Attributes

from otel import otlp, spans, trimmed

log = logging.getLogger(__name__)

# The SDK's own defaults (5 s, 2048 spans) keep a roll out of sight for seconds and lose spans under a
# load this lab is made for. 16384 waiting spans are some 15 MB, the bound when the collector is away.
EXPORT_DELAY_MS = 1000
MAX_WAITING_SPANS = 16_384
EXPORT_BATCH = 512
# So many are encoded at a time. Each alone costs twice as much, because the caches hold something else each time.
ENCODED_AT_ONCE = 32
# A batch that is not taken is sent again every second, for five minutes: a collector that restarts loses
# nothing, and a batch that no receiver will ever take does not hold up the others for ever.
RETRY_INTERVAL = 1.0
RETRY_FOR = 300.0
# A receiver that stands still for a minute still takes what it was sent once it goes on. Who gives up on an answer
# sooner, the standard exporter after 10 s, sends the batch again and has its spans there twice.
EXPORT_TIMEOUT = 90.0
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


class Exporter(Protocol):
    """One way out for spans; ``encode`` is called by any thread, ``export`` by the queue's only."""

    def encode(self, span: spans.LeanSpan) -> Any: ...

    def export(self, batch: list[Any]) -> bool:
        """Whether the batch arrived."""

    def shutdown(self) -> None:
        """End an attempt that is under way, too."""


class _FileExporter:
    """OTLP JSON, a batch a line, into a file that is rotated by ``logging``'s own handler.

    The lines go past the handler: it would look at a quarter of a megabyte as text three times, and it keeps to itself
    that a disk is full.
    """

    def __init__(self, resource: Resource, file: TraceFile) -> None:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        self._resource = resource
        self._max_bytes = file.max_bytes
        self._handler = RotatingFileHandler(file.path, backupCount=file.backups, encoding="utf-8")

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.json_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        line = memoryview(otlp.json_batch(self._resource, batch) + b"\n")
        if self._handler.stream is None:  # a rotation failed halfway
            self._handler.stream = self._handler._open()
        before = os.fstat(self._handler.stream.fileno()).st_size
        if before and before + len(line) > self._max_bytes:
            self._handler.doRollover()
            before = 0
        descriptor = self._handler.stream.fileno()
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except OSError:
            os.ftruncate(descriptor, before)  # it is sent again, whole
            raise
        return True

    def shutdown(self) -> None:
        self._handler.close()


class _HttpExporter:
    """OTLP/HTTP with protobuf, by the client of the standard exporter: its endpoint, headers, TLS and compression.

    Its retries are not used: they wait longer and longer, and a collector that is back would not be noticed.
    """

    def __init__(self, resource: Resource, timeout: float) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._resource = resource
        self._timeout = timeout
        self._standard = OTLPSpanExporter()

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.protobuf_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        client = self._standard._client
        data = client._compress(otlp.protobuf_batch(self._resource, batch))
        status = client._submit(data, self._timeout).status_code
        return status is not None and 200 <= status < 400

    def shutdown(self) -> None:
        self._standard.shutdown()  # type: ignore[no-untyped-call]


class _GrpcExporter:
    """OTLP over gRPC, by the standard exporter, handed requests that are made already."""

    def __init__(self, resource: Resource, timeout: float) -> None:
        # Imported where it is needed: it costs a quarter of a second and 20 MB.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        class Standard(OTLPSpanExporter):
            def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
                request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(
                    otlp.protobuf_batch(resource, data)
                )
                return request

        self._standard = Standard(timeout=timeout)

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.protobuf_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        return self._standard.export(batch) is SpanExportResult.SUCCESS  # type: ignore[arg-type]

    def shutdown(self) -> None:
        self._standard.shutdown()


class _ConsoleExporter:
    def __init__(self) -> None:
        self._standard = ConsoleSpanExporter(out=sys.stderr)  # stdout belongs to the logs

    def encode(self, span: spans.LeanSpan) -> ReadableSpan:
        return span.readable()

    def export(self, batch: list[ReadableSpan]) -> bool:
        return self._standard.export(batch) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._standard.shutdown()


class SpanQueue:
    """Hands finished spans to an exporter, in batches, from a thread of its own.

    The SDK's BatchSpanProcessor gives a batch up once its exporter has failed, and keeps no count. Here a
    failed batch is sent again while up to ``capacity`` spans wait behind it; those that find no room, and
    those that cannot be sent at the end, are counted in ``dropped``.
    """

    def __init__(self, exporter: Exporter, *, capacity: int, delay: float, batch: int) -> None:
        """``delay`` is how long, in seconds, spans wait for a batch of ``batch`` to fill.

        Spans are encoded by whoever ends the last of :data:`ENCODED_AT_ONCE`, or by the thread where fewer come. The
        thread alone would take the interpreter from the event loop, and what the spans hold out of its processor's
        caches.
        """
        self._exporter = exporter
        self._capacity = capacity
        self._delay = delay
        self._batch = batch
        # A deque's append and popleft are atomic: no lock between the event loop and the thread.
        self._spans: deque[spans.LeanSpan] = deque()
        self._encoded: deque[Any] = deque()
        self._encoded_at_once = min(batch, ENCODED_AT_ONCE)
        # Counted apart, each by one thread: adding to a number is no single step.
        self._refused = 0
        self._lost = 0
        self._reported = 0
        self._closed = False
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="span-queue", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many spans found no room, could not be written or were not taken."""
        return self._refused + self._lost

    def add(self, span: spans.LeanSpan) -> None:
        """Take a span that has ended."""
        if self._waiting() >= self._capacity or self._closed:
            self._refused += 1
            return
        self._spans.append(span)
        if len(self._spans) >= self._encoded_at_once:
            self._refused += self._encode(self._encoded_at_once)
            if len(self._encoded) >= self._batch and not self._filled.is_set():
                self._filled.set()

    def _waiting(self) -> int:
        return len(self._spans) + len(self._encoded)

    def shutdown(self) -> None:
        """Send what is waiting; gives up after :data:`FLUSH_TIMEOUT` seconds."""
        self._closed = True
        self._stopping.set()
        self._filled.set()
        self._thread.join(FLUSH_TIMEOUT)
        self._exporter.shutdown()  # ends an attempt that is under way, too
        self._thread.join(1)
        self._refused += self._waiting()

    def _run(self) -> None:
        while not (self._stopping.is_set() and not self._waiting()):
            self._filled.wait(self._delay)
            # Cleared before the spans are taken: a span added in between sets it again.
            self._filled.clear()
            self._lost += self._encode(len(self._spans))
            for _ in range(0, len(self._encoded), self._batch):
                self._send([self._encoded.popleft() for _ in range(min(self._batch, len(self._encoded)))])
            self._report()

    def _encode(self, most: int) -> int:
        """Encode up to so many spans in a row; returns how many could not be."""
        lost = 0
        for _ in range(most):
            try:
                span = self._spans.popleft()
            except IndexError:  # another thread has taken the rest
                break
            try:
                self._encoded.append(self._exporter.encode(span))
            except Exception:  # those that can be written must not be lost with one that cannot
                lost += 1
                log.exception("Span not encoded", extra={"fields": {}})
        return lost

    def _report(self) -> None:
        if lost := self.dropped - self._reported:
            log.error("%s spans dropped", lost, extra={"fields": {}})
            self._reported += lost

    def _send(self, batch: list[Any]) -> None:
        deadline = time.monotonic() + RETRY_FOR
        refused = False
        while True:
            try:
                if self._exporter.export(batch):
                    if refused:
                        log.info("Spans are taken again", extra={"fields": {}})
                    return
            except Exception:
                log.exception("Spans not exported", extra={"fields": {}})
            if not refused:
                refused = True
                log.warning("Spans are not taken: they wait and are sent again", extra={"fields": {}})
            if self._stopping.is_set() or time.monotonic() > deadline:
                self._lost += len(batch)
                return
            self._report()
            self._stopping.wait(RETRY_INTERVAL)


_queues: list[SpanQueue] = []


def dropped() -> int:
    """How many of this process's spans were dropped."""
    return sum(queue.dropped for queue in _queues)


def _exporters(environ: Mapping[str, str], resource: Resource, file: TraceFile | None) -> list[Exporter]:
    chosen = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    exporters: list[Exporter] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name == "none":
            continue
        elif name == "console":
            exporters.append(_ConsoleExporter())
        elif name == "otlp":
            exporters.append(_otlp_exporter(environ, resource, file))
        else:
            raise TracingError(f"OTEL_TRACES_EXPORTER={name!r}: must be otlp, console or none")
    return exporters


def _otlp_exporter(environ: Mapping[str, str], resource: Resource, file: TraceFile | None) -> Exporter:
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if file is not None and not endpoint:
        return _FileExporter(resource, file)
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    given = environ.get("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT") or environ.get("OTEL_EXPORTER_OTLP_TIMEOUT")
    try:
        timeout = float(given) if given else EXPORT_TIMEOUT
    except ValueError:
        raise TracingError(f"OTEL_EXPORTER_OTLP_TIMEOUT={given!r}: must be a number of seconds") from None
    if protocol == "http/protobuf":
        return _HttpExporter(resource, timeout)
    if protocol == "grpc":
        return _GrpcExporter(resource, timeout)
    raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: must be http/protobuf or grpc")


def _queue(environ: Mapping[str, str], exporter: Exporter) -> SpanQueue:
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
    resource = Resource.create(attributes)
    provider = spans.LeanTracerProvider(resource)
    queues = [_queue(environ, exporter) for exporter in _exporters(environ, resource, file)]
    for queue in queues:
        provider.add_sink(queue.add)
    _queues.extend(queues)
    trace.set_tracer_provider(provider)
    # The instrumentation takes its exclusions from the environment only.
    os.environ.setdefault("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", ",".join(untraced_paths))
    trimmed.trim()
    AioHttpServerInstrumentor().instrument()
    AiopgInstrumentor().instrument()

    def flush() -> None:
        for queue in queues:
            queue.shutdown()

    def stop() -> None:
        # A thread that dies with the process: a collector that is away must not hold up the end.
        flushing = threading.Thread(target=flush, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT + 2)
        if lost := dropped():
            log.error("%s spans of this process were never exported", lost, extra={"fields": {}})

    return stop


# Traces an aiohttp client session.
trace_session = trimmed.trace_session


@lru_cache(1)
def tracer() -> Tracer:
    """What our own spans are made with; to look it up each time takes longer than to make a span."""
    return trace.get_tracer("dicelab")


def current_trace_id() -> str | None:
    """The 32 hex digits of the current span's trace, or ``None`` outside a span."""
    ids = spans.hex_ids(spans.current_span())
    return ids[0] if ids else None


def set_attribute(key: str, value: str | int | float | bool) -> None:
    """Set an attribute on the current span."""
    span = spans.current()
    if span is not None:
        span.set_attribute(key, value)


def record_failure(error: BaseException) -> None:
    """Mark the current span as failed because of ``error``: status ERROR and the exception event."""
    span = trace.get_current_span()
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def span(name: str, attributes: Attributes = None) -> AbstractContextManager[Span]:
    """A business span around a block. An exception that leaves the block marks the span as failed."""
    return tracer().start_as_current_span(name, attributes=attributes)


def root_span(name: str) -> AbstractContextManager[Span]:
    """The root of a new trace, for something that a user starts other than by an HTTP request."""
    return tracer().start_as_current_span(name, context=Context(), kind=SpanKind.SERVER)


def rename_span(name: str) -> None:
    """Give the current span another name than its instrumentation did."""
    trace.get_current_span().update_name(name)
