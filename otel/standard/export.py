"""What the OpenTelemetry SDK lacks for this lab, added by its public extension points.

A ``SpanProcessor`` that counts what it drops, a ``SpanExporter`` that retries, one that writes rotated files.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Status

from otel.standard.variables import Batches

log = logging.getLogger(__name__)

# A failed batch is sent again every second for five minutes: a restart of the collector loses nothing, and a batch
# that is never accepted does not hold up the others for ever.
RETRY_INTERVAL = 1.0
RETRY_FOR = 300.0


class RetryingExporter(SpanExporter):
    """Sends a batch again until the exporter behind it succeeds, for :data:`RETRY_FOR` seconds."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._reported = 0
        self.stopping = threading.Event()
        self.dropped = 0
        self.finished = 0  # spans that were exported or dropped after they had been in a batch

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        spans = [encodable(span) for span in spans]
        deadline = time.monotonic() + RETRY_FOR
        retrying = False
        while (result := self._attempt(spans)) is not SpanExportResult.SUCCESS:
            if not retrying:
                retrying = True
                log.warning("Span export failed; retrying", extra={"fields": {}})
            if self.stopping.wait(RETRY_INTERVAL) or time.monotonic() > deadline:
                self.drop(len(spans))
                break
            self.report()
        else:
            if retrying:
                log.info("Span export succeeded again", extra={"fields": {}})
        self.finished += len(spans)
        self.report()
        return result

    def _attempt(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return self._exporter.export(spans)
        except Exception:
            log.exception("Spans not exported", extra={"fields": {}})
            return SpanExportResult.FAILURE

    def drop(self, spans: int) -> None:
        with self._lock:  # called from several threads
            self.dropped += spans

    def report(self) -> None:
        if lost := self.dropped - self._reported:
            self._reported += lost
            log.error("%s spans dropped", lost, extra={"fields": {}})

    def shutdown(self) -> None:
        self._exporter.shutdown()


class BoundedSpanProcessor(SpanProcessor):
    """The SDK's batch processor, which counts the spans it has no room for instead of replacing older ones."""

    def __init__(self, exporter: RetryingExporter, batches: Batches) -> None:
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter, **batches)
        self._room = batches["max_queue_size"]
        self._accepted = 0
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            full = self._accepted - self._exporter.finished >= self._room
            self._accepted += not full
        if full:
            self._exporter.drop(1)
        else:
            self._processor.on_end(span)

    def shutdown(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    @property
    def dropped(self) -> int:
        return self._exporter.dropped

    def stop_retrying(self) -> None:
        """Give each batch that still waits one more attempt."""
        self._exporter.stopping.set()

    def lost_at_end(self) -> int:
        """Spans that were dropped or are not exported yet."""
        return self._exporter.dropped + self._accepted - self._exporter.finished


class RotatingFile:
    """A file of lines, rotated between two lines: ``path``, then ``path.1`` to ``path.<backups>``, the oldest last."""

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._paths = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1))]
        self._max_bytes = max_bytes
        self._file = open(path, "ab", buffering=0)

    def write(self, line: bytes) -> None:
        """Append a line, whole or not at all; raises ``OSError``."""
        if self._file.closed:  # the last rotation failed
            self._file = open(self._paths[0], "ab", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        if size and size + len(line) > self._max_bytes:
            self._file.close()
            for older, newer in zip(self._paths[:0:-1], self._paths[-2::-1], strict=True):
                if newer.exists():
                    newer.replace(older)
            self._file, size = open(self._paths[0], "ab", buffering=0), 0
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        self._file.close()


class FileExporter(SpanExporter):
    """OTLP JSON, one batch a line, in a :class:`RotatingFile`.

    ``opentelemetry-exporter-otlp-json-file`` writes the same lines, but it neither rotates nor removes half a line
    from a full disk, and its message objects take 60 µs a span; this takes a tenth of that.
    """

    def __init__(self, resource: Resource, file: RotatingFile) -> None:
        self._resource = {"attributes": _attributes(utf8(resource.attributes))}
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        scopes: dict[InstrumentationScope | None, list[dict[str, Any]]] = {}
        for span in spans:
            scopes.setdefault(span.instrumentation_scope, []).append(_span(span))
        scope_spans = [_scope(scope) | {"spans": group} for scope, group in scopes.items()]
        document = {"resourceSpans": [{"resource": self._resource, "scopeSpans": scope_spans}]}
        self._file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


# --- OTLP JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding ---

# SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, and with SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK.
_FLAGS_LOCAL, _FLAGS_REMOTE = 0x100, 0x300


# By type: True is an int as well. 64-bit integers are strings in JSON.
_VALUES: dict[type, Callable[[Any], dict[str, Any]]] = {
    str: lambda value: {"stringValue": value},
    bool: lambda value: {"boolValue": value},
    int: lambda value: {"intValue": str(value)},
}


def _attributes(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Raises ``KeyError`` for values of other types, such as lists."""
    return [{"key": key, "value": _VALUES[type(value)](value)} for key, value in (attributes or {}).items()]


def _scope(scope: InstrumentationScope | None) -> dict[str, Any]:
    if scope is None:
        return {}
    named = {"scope": {"name": scope.name, "version": scope.version or ""}}
    return named | {"schemaUrl": scope.schema_url} if scope.schema_url else named


def _span(span: ReadableSpan) -> dict[str, Any]:
    context, parent = span.context, span.parent
    assert context is not None
    rare = (context.trace_state, span.links, span.dropped_attributes, span.dropped_events, span.dropped_links)
    try:
        if any(rare):
            raise KeyError
        document = {
            "traceId": f"{context.trace_id:032x}",
            "spanId": f"{context.span_id:016x}",
            "parentSpanId": f"{parent.span_id:016x}" if parent else "",
            "flags": _FLAGS_REMOTE if parent and parent.is_remote else _FLAGS_LOCAL,
            "name": span.name,
            "kind": span.kind.value + 1,
            "startTimeUnixNano": str(span.start_time),
            "endTimeUnixNano": str(span.end_time),
            "attributes": _attributes(span.attributes),
            "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
        }
        if span.events:
            document["events"] = [
                {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)}
                for event in span.events
            ]
        return document
    except KeyError:  # the package's slower encoder knows everything else that a span may hold
        whole: dict[str, Any] = encode_spans([span]).to_dict()["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        return whole


# --- text ---


# The SDK sets it on each exception event, as text. The semantic conventions have it as a boolean, and deprecated.
ESCAPED = "exception.escaped"


def encodable(span: ReadableSpan) -> ReadableSpan:
    """The span, with text that UTF-8 cannot encode replaced, and without the attribute :data:`ESCAPED` of its events.

    Bytes of a request that are not UTF-8 become lone surrogates in Python, and one of them would make the exporters
    refuse the whole batch.
    """
    texts = [span.name, span.status.description, *(span.attributes or {}).values()]
    for event in span.events:
        texts += (event.name, *(event.attributes or {}).values())
    # A copy has no counts of what a limit dropped: a span that has some keeps the attribute.
    limited = span.dropped_attributes or span.dropped_events
    escaped = not limited and any(ESCAPED in (event.attributes or {}) for event in span.events)
    if not escaped and all(type(text) is not str or text.isascii() for text in texts):
        return span
    events = [
        Event(
            utf8(event.name),
            {key: value for key, value in utf8(event.attributes or {}).items() if key != ESCAPED},
            event.timestamp,
        )
        for event in span.events
    ]
    return ReadableSpan(
        name=utf8(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=utf8(span.attributes or {}),
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, utf8(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def utf8(value: Any) -> Any:
    """The value, in which all text that UTF-8 cannot encode is replaced, also in keys and lists."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {utf8(key): utf8(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(utf8, value))
    return value
