"""Spans, log lines and samples as a lab writes them, read from OTLP JSON, JSON lines and the Prometheus text format."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = [
    "OPENMETRICS",
    "PROCESS_METRICS",
    "SPAN_KINDS",
    "STATUS_CODES",
    "Family",
    "Line",
    "Sample",
    "Span",
    "covered",
    "escape_label",
    "format_time",
    "json_object",
    "parse_export",
    "parse_families",
    "parse_line",
    "parse_samples",
    "parse_spans",
    "parse_time",
    "total",
]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"  # the ``Accept`` header that :func:`parse_samples` needs
PROCESS_METRICS = ("process_", "python_")  # prefixes of the metrics that every Python process has
# In the order of OTLP's numbers, which files have. Tempo writes the names of the enumeration: SPAN_KIND_SERVER.
SPAN_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUS_CODES = ("unset", "ok", "error")


@dataclass(frozen=True)
class Span:
    """One span.

    Attributes:
        trace_id, span_id, parent_id: hexadecimal; ``parent_id`` is empty for a root span.
        kind, status: the numbers that OTLP uses; see :data:`SPAN_KINDS` and :data:`STATUS_CODES`.
        start, end: nanoseconds since 1970.
        events: the names of the span's events.
        event_attributes: the attributes of each event, in the same order.
        resource: the attributes of the process.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    events: list[str]
    event_attributes: list[dict[str, Any]] = field(default_factory=list)
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return STATUS_CODES[self.status] == "error"


@dataclass(frozen=True)
class Line:
    """One log line; ``fields`` is the whole JSON object, ``timestamp`` in RFC 3339."""

    timestamp: str
    level: str
    service: str
    message: str
    trace_id: str
    fields: Mapping[str, Any]

    def has(self, **fields: Any) -> bool:
        """Whether the line has all these fields with these values."""
        return fields.items() <= self.fields.items()


@dataclass(frozen=True)
class Family:
    """A metric: its name in queries (``…_total`` for a counter), its type, and its labels without ``le``."""

    name: str
    kind: str
    labels: tuple[str, ...]


def parse_spans(lines: Iterable[str], trace_id: str | None = None) -> list[Span]:
    """The spans of the lines of a trace file, of one trace where ``trace_id`` is given.

    Raises:
        KeyError, ValueError: when a line is not OTLP JSON.
    """
    return [
        span
        for line in lines
        if trace_id is None or trace_id in line
        for span in parse_export(json.loads(line), trace_id)
    ]


def parse_export(document: Mapping[str, Any], trace_id: str | None = None) -> list[Span]:
    """The spans of one OTLP JSON document (``resourceSpans``), of one trace where ``trace_id`` is given."""
    return [
        span
        for resource in document.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in _spans(_attributes(resource["resource"]["attributes"]), scope["spans"])
        if trace_id in (None, span.trace_id)
    ]


def _spans(resource: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> Iterable[Span]:
    for entry in entries:
        yield Span(
            service=resource["service.name"],
            name=entry["name"],
            trace_id=_hexadecimal(entry["traceId"], 32),
            span_id=_hexadecimal(entry["spanId"], 16),
            parent_id=_hexadecimal(entry.get("parentSpanId", ""), 16),
            kind=_number(entry.get("kind", 0), "SPAN_KIND_", SPAN_KINDS),
            start=int(entry["startTimeUnixNano"]),
            end=int(entry["endTimeUnixNano"]),
            status=_number(entry.get("status", {}).get("code", 0), "STATUS_CODE_", STATUS_CODES),
            attributes=_attributes(entry.get("attributes", [])),
            events=[event["name"] for event in entry.get("events", [])],
            event_attributes=[_attributes(event.get("attributes", [])) for event in entry.get("events", [])],
            resource=resource,
        )


def _hexadecimal(identifier: str, digits: int) -> str:
    """An id in hexadecimal. Tempo writes it in base64, the usual encoding of bytes in protocol buffers' JSON."""
    return identifier if len(identifier) in (0, digits) else base64.b64decode(identifier).hex()


def _number(value: int | str, prefix: str, names: Sequence[str]) -> int:
    return names.index(value.removeprefix(prefix).lower()) if isinstance(value, str) else value


def _attributes(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {entry["key"]: _value(entry["value"]) for entry in entries}


def _value(value: Mapping[str, Any]) -> Any:
    kind, content = next(iter(value.items()), ("", ""))
    return int(content) if kind == "intValue" else content


def parse_line(text: str) -> Line:
    """One log line.

    Raises:
        ValueError: when it is not a JSON object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"not a JSON object: {text[:100]}")
    timestamp, level, service, message, trace_id = (
        str(fields.get(name, "")) for name in ("timestamp", "level", "logger", "message", "trace_id")
    )
    return Line(timestamp, level, service, message, trace_id, fields)


def parse_samples(text: str) -> list[Sample]:
    """The samples of a ``/metrics`` page in the OpenMetrics format.

    Raises:
        ValueError: when the page is in another format.
    """
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]  # type: ignore[no-untyped-call]


def parse_families(text: str) -> list[Family]:
    """The metrics of a ``/metrics`` page in the OpenMetrics format.

    Raises:
        ValueError: when the page is in another format.
    """
    return [
        Family(
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"})),
        )
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    ]


def total(samples: Iterable[Sample], name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum of the samples with this name that have these labels; 0 where there are none."""
    wanted = (labels or {}).items()
    return sum(sample.value for sample in samples if sample.name == name and wanted <= sample.labels.items())


def format_time(seconds: float) -> str:
    """A time in seconds since 1970 as log lines have it: RFC 3339, in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(timestamp: Any) -> float:
    """The time of a log line in seconds since 1970; 0 where it has none."""
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        return 0.0


def escape_label(value: str) -> str:
    """A label's value as the Prometheus text format has it between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """The length of the union of intervals, each with its start and its end."""
    length, until = 0, 0
    for start, end in sorted(spans):
        length += max(0, end - max(start, until))
        until = max(until, end)
    return length


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds; empty for anything else."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
