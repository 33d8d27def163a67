"""Text that UTF-8 cannot encode.

Bytes of a request that are not UTF-8 become lone surrogates in Python, and one of them would make the exporters refuse
a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status

# The SDK sets it on each exception event, as text. The semantic conventions have it as a boolean, and deprecated.
ESCAPED = "exception.escaped"


def encodable(span: ReadableSpan) -> ReadableSpan:
    """The span without :data:`ESCAPED` in its events, and with text that UTF-8 cannot encode replaced."""
    texts = [span.name, span.status.description, *plain(span.attributes).values()]
    for event in span.events:
        texts += (event.name, *plain(event.attributes).values())
    # A copy has no counts of what a limit dropped: a span that has some keeps the attribute.
    limited = span.dropped_attributes or span.dropped_events
    escaped = not limited and any(ESCAPED in plain(event.attributes) for event in span.events)
    if not escaped and "".join([text for text in texts if type(text) is str]).isascii():
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


def plain(attributes: Any) -> dict[str, Any]:
    """The SDK's attributes as a dictionary, by one copy: iterating over them takes ten times as long."""
    copied: dict[str, Any] = attributes.copy() if attributes else {}
    return copied
