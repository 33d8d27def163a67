"""The size of spans in OTLP: reads OTLP JSON, and encodes it as the protocol buffers that exporters send."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as trace
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from lab.signals import Span, parse_export

BATCH = 512  # spans of one export, the default of OTEL_BSP_MAX_EXPORT_BATCH_SIZE


class Size(NamedTuple):
    """Bytes before and after compression with gzip, which exporters and stores use."""

    raw: int = 0
    compressed: int = 0

    def __add__(self, other: tuple[int, ...]) -> Size:  # type: ignore[override]  # sums, where a tuple would append
        return Size(self.raw + other[0], self.compressed + other[1])


@dataclass(frozen=True)
class SpanRecord:
    """One span with its resource and scope.

    Attributes:
        span: as the lab's other commands read it.
        message: the span's OTLP message.
        resource, scope: the messages that it shares with other spans of its process.
    """

    span: Span
    message: trace.Span
    resource: Resource
    scope: InstrumentationScope

    @cached_property
    def size(self) -> int:
        """Bytes that the span adds to an export: its message, a tag and the message's length."""
        length: int = self.message.ByteSize()
        return 1 + (length.bit_length() + 6) // 7 + length


def records(document: Mapping[str, Any]) -> list[SpanRecord]:
    """The spans of one OTLP JSON document, from a trace file or from Tempo.

    Raises:
        KeyError, ValueError: when it is not OTLP JSON.
    """
    found: list[SpanRecord] = []
    parsed = iter(parse_export(document))
    for resource_spans in document.get("resourceSpans", []):
        resource = Resource(attributes=_attributes(resource_spans["resource"].get("attributes", [])))
        for scope_spans in resource_spans["scopeSpans"]:
            named = scope_spans.get("scope", {})
            scope = InstrumentationScope(
                name=named.get("name", ""),
                version=named.get("version", ""),
                attributes=_attributes(named.get("attributes", [])),
            )
            found += [
                SpanRecord(span := next(parsed), _message(entry, span), resource, scope)
                for entry in scope_spans["spans"]
            ]
    return found


def exports(spans: Iterable[SpanRecord]) -> Iterator[bytes]:
    """The export requests in which the services' batch processors would send these spans, process by process."""
    processes: dict[bytes, list[SpanRecord]] = {}
    for record in sorted(spans, key=lambda record: record.span.end):
        processes.setdefault(record.resource.SerializeToString(deterministic=True), []).append(record)
    for group in processes.values():
        for start in range(0, len(group), BATCH):
            yield _request(group[start : start + BATCH]).SerializeToString()


def size(spans: Iterable[SpanRecord]) -> Size:
    """The size of the export requests for these spans."""
    return sum((Size(len(body), len(gzip.compress(body))) for body in exports(spans)), Size())


def _request(spans: Iterable[SpanRecord]) -> ExportTraceServiceRequest:
    scopes: dict[tuple[str, str], ScopeSpans] = {}
    resource = Resource()
    for record in spans:
        resource = record.resource
        key = record.scope.name, record.scope.version
        if key not in scopes:
            scopes[key] = ScopeSpans(scope=record.scope)
        scopes[key].spans.append(record.message)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=list(scopes.values()))]
    )


def _message(entry: Mapping[str, Any], span: Span) -> trace.Span:
    status = entry.get("status", {})
    return trace.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        trace_state=entry.get("traceState", ""),
        flags=int(entry.get("flags", 0)),
        name=span.name,
        kind=trace.Span.SpanKind.ValueType(span.kind),
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
        attributes=_attributes(entry.get("attributes", [])),
        dropped_attributes_count=int(entry.get("droppedAttributesCount", 0)),
        events=[
            trace.Span.Event(
                time_unix_nano=int(event.get("timeUnixNano", 0)),
                name=event["name"],
                attributes=_attributes(event.get("attributes", [])),
            )
            for event in entry.get("events", [])
        ],
        links=[
            trace.Span.Link(
                trace_id=_identifier(link["traceId"], 32),
                span_id=_identifier(link["spanId"], 16),
                trace_state=link.get("traceState", ""),
                flags=int(link.get("flags", 0)),
                attributes=_attributes(link.get("attributes", [])),
            )
            for link in entry.get("links", [])
        ],
        status=trace.Status(message=status.get("message", ""), code=trace.Status.StatusCode.ValueType(span.status)),
    )


def _identifier(text: str, digits: int) -> bytes:
    """An id, which is hexadecimal in files and base64 in Tempo's responses."""
    return bytes.fromhex(text) if len(text) == digits else base64.b64decode(text)


def _attributes(entries: Iterable[Mapping[str, Any]]) -> list[KeyValue]:
    return [KeyValue(key=entry["key"], value=_value(entry["value"])) for entry in entries]


def _value(value: Mapping[str, Any]) -> AnyValue:
    kind: str
    content: Any
    kind, content = next(iter(value.items()), ("", None))
    match kind:
        case "stringValue":
            return AnyValue(string_value=content)
        case "intValue":
            return AnyValue(int_value=int(content))
        case "doubleValue":
            return AnyValue(double_value=float(content))
        case "boolValue":
            return AnyValue(bool_value=content)
        case "bytesValue":
            return AnyValue(bytes_value=base64.b64decode(content))
        case "arrayValue":
            return AnyValue(array_value=ArrayValue(values=[_value(item) for item in content.get("values", [])]))
        case "kvlistValue":
            return AnyValue(kvlist_value=KeyValueList(values=_attributes(content.get("values", []))))
    return AnyValue()
