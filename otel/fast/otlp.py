"""Fast OTLP encoders: each span is encoded to the bytes of its JSON or protobuf message, and a batch joins them.

The standard encoders make an object of each message, attribute and value, which takes 60 µs a server span, in JSON as
in protobuf. These take 4 µs, because they cache encoded attributes. A span with links, a trace state or attributes of
other types than text, numbers and booleans goes through the standard encoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode

from otel.fast.spans import NO_STATE, LeanSpan

# SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, and with SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK.
FLAGS_LOCAL, FLAGS_REMOTE = 0x100, 0x300
# By ``_value_``, which the enum module documents: hashing a member, or reading its ``value``, calls a Python function.
KINDS = {kind.value: kind.value + 1 for kind in SpanKind}
MAX_REMEMBERED = 4096
LONGEST_REMEMBERED = 512
STANDARD_LIMIT = 128  # of attributes, events and an event's attributes

# A span of a batch: the scope it belongs to, and its message.
Encoded = tuple[InstrumentationScope, bytes]


class _NotPlain(Exception):
    """Only the standard encoders can encode this span."""


class _Attributes:
    """A cache of attributes, encoded as fragments of a message.

    Args:
        fragment: encodes one attribute.
    """

    def __init__(self, fragment: Callable[[str, Any], bytes]) -> None:
        self._fragment = fragment
        # By type, because 1, 1.0 and True are equal keys. Floats are not cached: they rarely recur.
        self._known: dict[type, dict[tuple[str, Any], bytes]] = {str: {}, bool: {}, int: {}}

    def __call__(self, attributes: Mapping[str, Any]) -> list[bytes]:
        known = self._known
        try:
            return [known[type(item[1])][item] for item in attributes.items()]
        except KeyError:
            return [self._new(type(item[1]), item) for item in attributes.items()]

    def _new(self, kind: type, item: tuple[str, Any]) -> bytes:
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


def _by_scope(batch: Iterable[Encoded]) -> Iterable[tuple[InstrumentationScope, list[bytes]]]:
    groups: dict[int, tuple[InstrumentationScope, list[bytes]]] = {}
    for scope, message in batch:
        group = groups.get(id(scope))  # each scope is one object, and its hash is a slow Python function
        if group is None:
            group = groups[id(scope)] = scope, []
        group[1].append(message)
    return groups.values()


# --- JSON ---


def json_span(span: LeanSpan) -> bytes:
    """The span as a JSON object."""
    if _plain(span):
        try:
            return _json_plain(span)
        except _NotPlain:
            pass
    # Imported where they are needed, here and below: they take time and memory, and most processes never do.
    from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans

    message = encode_spans([span.readable()]).to_dict()["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return json.dumps(message, separators=(",", ":")).encode()


def json_batch(resource: Resource, batch: Iterable[Encoded]) -> bytes:
    """An ``ExportTraceServiceRequest`` as one line, without its newline."""
    scopes = [
        b'{"scope":{"name":%b,"version":%b},"spans":[%b]%b}'
        % (
            _json_text(scope.name),
            _json_text(scope.version or ""),
            b",".join(messages),
            b',"schemaUrl":%b' % _json_text(scope.schema_url) if scope.schema_url else b"",
        )
        for scope, messages in _by_scope(batch)
    ]
    return b'{"resourceSpans":[{"resource":{"attributes":[%b]},"scopeSpans":[%b]}]}' % (
        b",".join(_json_attributes(resource.attributes)),
        b",".join(scopes),
    )


def _json_plain(span: LeanSpan) -> bytes:
    parent = b',"parentSpanId":"%016x"' % span.parent_id if span.parent_id else b""
    events = status = b""
    if span.events:
        events = b',"events":[%b]' % b",".join(
            b'{"timeUnixNano":"%d","name":%b,"attributes":[%b]}'
            % (timestamp, _json_text(name), b",".join(_json_attributes(attributes)))
            for name, timestamp, attributes in span.events
        )
    if span.status_description:
        status = b'"message":%b,' % _json_text(span.status_description)
    if span.status_code is not StatusCode.UNSET:
        status += b'"code":%d' % span.status_code.value
    return (
        b'{"traceId":"%032x","spanId":"%016x"%b,"flags":%d,"name":%b,"kind":%d,'
        b'"startTimeUnixNano":"%d","endTimeUnixNano":"%d","attributes":[%b]%b,"status":{%b}}'
        % (
            span.trace_id,
            span.span_id,
            parent,
            FLAGS_REMOTE if span.parent_is_remote else FLAGS_LOCAL,
            _json_text(span.name),
            KINDS[span.kind._value_],
            span.start_time,
            span.end_time,
            b",".join(_json_attributes(span.attributes)),
            events,
            status,
        )
    )


def _json_text(text: str) -> bytes:
    try:
        return orjson.dumps(text)
    except TypeError:  # lone surrogates: bytes of a request that were no UTF-8
        return orjson.dumps(text.encode(errors="replace").decode())


def _json_fragment(key: str, value: Any) -> bytes:
    if type(value) is str:
        content = b'{"stringValue":%b}' % _json_text(value)
    elif type(value) is bool:
        content = b'{"boolValue":%b}' % (b"true" if value else b"false")
    elif type(value) is int:
        content = b'{"intValue":"%d"}' % value
    elif value - value == 0.0:
        content = b'{"doubleValue":%b}' % orjson.dumps(value)
    else:  # JSON cannot express NaN and infinity, OTLP can
        raise _NotPlain
    return b'{"key":%b,"value":%b}' % (_json_text(key), content)


_json_attributes = _Attributes(_json_fragment)


# --- protobuf: opentelemetry/proto/trace/v1/trace.proto ---

_DOUBLE = Struct("<d")
# kind, start and end, each behind its tag
_TIMES = Struct("<cBcQcQ")
_FLAGS = Struct("<2sI")


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


def protobuf_batch(resource: Resource, batch: Iterable[Encoded]) -> bytes:
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
    parts = [b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if span.parent_id:
        parts += (b"\x22\x08", span.parent_id.to_bytes(8, "big"))
    parts.append(_text(b"\x2a", span.name))
    parts.append(_TIMES.pack(b"\x30", KINDS[span.kind._value_], b"\x39", span.start_time, b"\x41", span.end_time))
    parts += _protobuf_attributes(span.attributes)
    for name, timestamp, attributes in span.events:
        event = [b"\x09", timestamp.to_bytes(8, "little"), _text(b"\x12", name)]
        event += [_field(b"\x1a", _key_value(key, value)) for key, value in attributes.items()]
        parts.append(_field(b"\x5a", b"".join(event)))
    status = _text(b"\x12", span.status_description or "")
    if span.status_code is not StatusCode.UNSET:
        status += b"\x18" + _varint(span.status_code.value)
    parts.append(_field(b"\x7a", status))
    parts.append(_FLAGS.pack(b"\x85\x01", FLAGS_REMOTE if span.parent_is_remote else FLAGS_LOCAL))
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return number.to_bytes(1, "little")
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


_protobuf_attributes = _Attributes(lambda key, value: _field(b"\x4a", _key_value(key, value)))
