"""Spans as OTLP JSON in rotated files, which a lab without a collector writes and its page reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel.standard.text import plain, utf8


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

    ``opentelemetry-exporter-otlp-json-file`` writes the same lines, but it neither rotates files nor removes half a
    line when the disk is full, and its message objects take 60 µs a span; this takes a twentieth of that.
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
MAX_REMEMBERED = 4096  # attributes
LONGEST_REMEMBERED = 512  # characters

# By type: True is an int as well. 64-bit integers are strings in JSON.
_VALUES: dict[type, Callable[[Any], dict[str, Any]]] = {
    str: lambda value: {"stringValue": value},
    bool: lambda value: {"boolValue": value},
    int: lambda value: {"intValue": str(value)},
}


def _attributes(attributes: Mapping[str, Any] | None) -> list[orjson.Fragment]:
    """Raises ``KeyError`` for values of other types, such as lists."""
    return [
        (_remembered if type(value) is not str or len(value) <= LONGEST_REMEMBERED else _attribute)(key, value)
        for key, value in plain(attributes).items()
    ]


def _attribute(key: str, value: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps({"key": key, "value": _VALUES[type(value)](value)}))


# Most attributes of a span are those of the span before it.
_remembered = lru_cache(MAX_REMEMBERED, typed=True)(_attribute)


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
