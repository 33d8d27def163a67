"""Fast OTLP encoders: each span is encoded to the bytes of its JSON or protobuf message, and a batch joins them.

The standard encoders make an object of each message, attribute and value, which takes 60 µs a server span, in JSON as
in protobuf. These take 4 µs, because they cache encoded attributes. A span with links, a trace state or attributes of
other types than text, numbers and booleans goes through the standard encoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from struct import Struct
from typing import Any, Generic, TypeVar

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from otel.fast.spans import NO_STATE, UNSET, LeanSpan

# SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, and with SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK.
FLAGS_LOCAL, FLAGS_REMOTE = 0x100, 0x300
# By ``_value_``, which the enum module documents: hashing a member, or reading its ``value``, calls a Python function.
KINDS = {kind.value: kind.value + 1 for kind in SpanKind}
MAX_REMEMBERED = 4096
LONGEST_REMEMBERED = 512
STANDARD_LIMIT = 128  # of attributes, events and an event's attributes

# A span of a batch: the scope it belongs to, and its message.
Message = TypeVar("Message", bound=str | bytes)
Encoded = tuple[InstrumentationScope, Message]


class _NotPlain(Exception):
    """Only the standard encoders can encode this span."""


class _Attributes(Generic[Message]):
    """A cache of attributes, encoded as fragments of a message.

    Args:
        fragment: encodes one attribute.
    """

    def __init__(self, fragment: Callable[[str, Any], Message]) -> None:
        self._fragment: Callable[[str, Any], Message] = fragment
        # By type, because 1, 1.0 and True are equal keys. Floats are not cached: they rarely recur.
        self._known: dict[type, dict[tuple[str, Any], Message]] = {str: {}, bool: {}, int: {}}

    def encode(self, attributes: Mapping[str, Any]) -> list[Message]:
        known = self._known
        try:
            return [known[type(item[1])][item] for item in attributes.items()]
        except KeyError:
            return [self._new(type(item[1]), item) for item in attributes.items()]

    def _new(self, kind: type, item: tuple[str, Any]) -> Message:
        key, value = item
        if type(key) is not str or not key or (kind is int and not -(2**63) <= value < 2**63):
            raise _NotPlain
        if kind is float:
            return self._fragment(key, value)
        try:
            known = self._known[kind]
        except KeyError:
            raise _NotPlain from None
        fragment = self._fragment(key, value)
        if len(fragment) <= LONGEST_REMEMBERED:
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            known[item] = fragment
        return fragment


def _plain(span: LeanSpan) -> bool:
    """Whether the span has no links, no trace state, and keeps to the standard limits by itself."""
    return (
        span.tracer.default_limits
        and not span.links
        and span.trace_state is NO_STATE
        and len(span.attributes) <= STANDARD_LIMIT
        and len(span.events) <= STANDARD_LIMIT
        and (not span.events or all(len(attributes) <= STANDARD_LIMIT for _, _, attributes in span.events))
    )


def _by_scope(batch: Iterable[Encoded[Message]]) -> Iterable[tuple[InstrumentationScope, list[Message]]]:
    groups: dict[int, tuple[InstrumentationScope, list[Message]]] = {}
    for scope, message in batch:
        group = groups.get(id(scope))  # each scope is one object, and its hash is a slow Python function
        if group is None:
            group = groups[id(scope)] = scope, []
        group[1].append(message)
    return groups.values()


# --- JSON ---


def json_span(span: LeanSpan) -> str:
    """The span as a JSON object."""
    if _plain(span):
        try:
            return _json_plain(span)
        except _NotPlain:
            pass
    # Imported where they are needed, here and below: they take time and memory, and most processes never do.
    from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans

    message = encode_spans([span.readable()]).to_dict()["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return json.dumps(message, separators=(",", ":"))


def json_batch(resource: Resource, batch: Iterable[Encoded[str]]) -> bytes:
    """An ``ExportTraceServiceRequest`` as one line, without its newline."""
    scopes = []
    for scope, messages in _by_scope(batch):
        schema = f',"schemaUrl":{_json_text(scope.schema_url)}' if scope.schema_url else ""
        named = f'"name":{_json_text(scope.name)},"version":{_json_text(scope.version or "")}'
        scopes.append(f'{{"scope":{{{named}}},"spans":[{",".join(messages)}]{schema}}}')
    attributes = ",".join(_json_attributes(resource.attributes))
    return (
        f'{{"resourceSpans":[{{"resource":{{"attributes":[{attributes}]}},"scopeSpans":[{",".join(scopes)}]}}]}}'
    ).encode()


def _json_plain(span: LeanSpan) -> str:
    parent = f',"parentSpanId":"{span.parent_id}"' if span.parent_id else ""
    events = status = ""
    if span.events:
        events = ",".join(
            f'{{"timeUnixNano":"{timestamp}","name":{_json_text(name)},'
            f'"attributes":[{",".join(_json_attributes(attributes))}]}}'
            for name, timestamp, attributes in span.events
        )
        events = f',"events":[{events}]'
    if span.status_description:
        status = f'"message":{_json_text(span.status_description)},'
    if span.status_code is not UNSET:
        status += f'"code":{span.status_code.value}'
    return (
        f'{{"traceId":"{span.trace_id}","spanId":"{span.span_id}"{parent},'
        f'"flags":{FLAGS_REMOTE if span.parent_is_remote else FLAGS_LOCAL},"name":{_json_text(span.name)},'
        f'"kind":{KINDS[span.kind._value_]},"startTimeUnixNano":"{span.start_time}","endTimeUnixNano":"{span.end_time}",'
        f'"attributes":[{",".join(_json_attributes(span.attributes))}]{events},"status":{{{status}}}}}'
    )


def _json_text(text: str) -> str:
    try:
        return orjson.dumps(text).decode()
    except TypeError:  # lone surrogates: bytes of a request that were no UTF-8
        return orjson.dumps(text.encode(errors="replace").decode()).decode()


def _json_fragment(key: str, value: Any) -> str:
    if type(value) is str:
        content = f'{{"stringValue":{_json_text(value)}}}'
    elif type(value) is bool:
        content = f'{{"boolValue":{"true" if value else "false"}}}'
    elif type(value) is int:
        content = f'{{"intValue":"{value}"}}'
    elif value - value == 0.0:
        content = f'{{"doubleValue":{value!r}}}'
    else:  # JSON cannot express NaN and infinity, OTLP can
        raise _NotPlain
    return f'{{"key":{_json_text(key)},"value":{content}}}'


_json_attributes = _Attributes(_json_fragment).encode


# --- protobuf: opentelemetry/proto/trace/v1/trace.proto ---

_DOUBLE = Struct("<d")
# kind, start and end, each behind its tag
_TIMES = Struct("<cBcQcQ")
_FLAGS_LOCAL, _FLAGS_REMOTE = (b"\x85\x01" + flags.to_bytes(4, "little") for flags in (FLAGS_LOCAL, FLAGS_REMOTE))


def protobuf_span(span: LeanSpan) -> bytes:
    """The span as a ``ScopeSpans.spans`` field: its tag, its length, its message."""
    if _plain(span):
        try:
            return _field(b"\x12", _protobuf_plain(span))
        except _NotPlain:
            pass
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    message = encode_spans([span.readable()]).resource_spans[0].scope_spans[0].spans[0]
    return _field(b"\x12", message.SerializeToString())


def protobuf_batch(resource: Resource, batch: Iterable[Encoded[bytes]]) -> bytes:
    """An ``ExportTraceServiceRequest``."""
    scopes = [
        _field(
            b"\x12",
            b"%b%b%b"
            % (
                _field(b"\x0a", _text(b"\x0a", scope.name) + _text(b"\x12", scope.version or "")),
                b"".join(messages),
                _text(b"\x1a", scope.schema_url or ""),
            ),
        )
        for scope, messages in _by_scope(batch)
    ]
    attributes = b"".join(_field(b"\x0a", _key_value(key, value)) for key, value in resource.attributes.items())
    return _field(b"\x0a", _field(b"\x0a", attributes) + b"".join(scopes))


def _protobuf_plain(span: LeanSpan) -> bytes:
    name = span.name
    parts = [
        b"\x0a\x10",
        bytes.fromhex(span.trace_id),
        b"\x12\x08",
        bytes.fromhex(span.span_id),
        b"\x22\x08" + bytes.fromhex(span.parent_id) if span.parent_id else b"",
        _name(name) if len(name) <= LONGEST_REMEMBERED else _text(b"\x2a", name),
        _TIMES.pack(b"\x30", KINDS[span.kind._value_], b"\x39", span.start_time, b"\x41", span.end_time),
        *_protobuf_attributes(span.attributes),
    ]
    for name, timestamp, attributes in span.events:
        event = [b"\x09", timestamp.to_bytes(8, "little"), _text(b"\x12", name)]
        event += [_field(b"\x1a", _key_value(key, value)) for key, value in attributes.items()]
        parts.append(_field(b"\x5a", b"".join(event)))
    status = _text(b"\x12", span.status_description) if span.status_description else b""
    if span.status_code is not UNSET:
        status += b"\x18" + _varint(span.status_code.value)
    parts.append(_field(b"\x7a", status) if status else b"\x7a\x00")
    parts.append(_FLAGS_REMOTE if span.parent_is_remote else _FLAGS_LOCAL)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return number.to_bytes(1, "little")
    if number < 0x4000:  # as most lengths
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(tag: bytes, content: bytes) -> bytes:
    return b"%b%b%b" % (tag, _varint(len(content)), content)


def _text(tag: bytes, text: str) -> bytes:
    """A text field; nothing at all for an empty text."""
    return _field(tag, text.encode(errors="replace")) if text else b""


def _key_value(key: str, value: Any) -> bytes:
    if type(value) is str:
        content = _field(b"\x0a", value.encode(errors="replace"))
    elif type(value) is bool:
        content = b"\x10\x01" if value else b"\x10\x00"
    elif type(value) is int:
        content = b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    elif type(value) is float:
        content = b"\x21" + _DOUBLE.pack(value)
    else:
        raise _NotPlain
    return _text(b"\x0a", key) + _field(b"\x12", content)


_name = lru_cache(MAX_REMEMBERED)(partial(_text, b"\x2a"))
_protobuf_attributes = _Attributes(lambda key, value: _field(b"\x4a", _key_value(key, value))).encode
