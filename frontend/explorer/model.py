"""Traces and log lines as the explorer sees them, wherever they come from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

TRACE_ID = re.compile(r"[0-9a-f]{32}")
SERVER, CLIENT = 2, 3  # span kinds, as OTLP numbers them
ERROR = 2  # a status code, likewise
MAX_SPANS = 2000  # of one trace that are looked at


class SourceError(Exception):
    """A source that does not answer; its text says so to the user."""


@dataclass(frozen=True)
class Span:
    """One span. Times are nanoseconds since 1970; ``parent_id`` is empty for a root."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: int
    start: int
    finish: int
    failed: bool
    message: str
    attributes: Mapping[str, Any]
    events: Sequence[tuple[str, int, Mapping[str, Any]]] = ()  # name, time, attributes

    @property
    def duration(self) -> int:
        return max(0, self.finish - self.start)


@dataclass(frozen=True)
class TraceSummary:
    """A line of the list of traces. Times are nanoseconds."""

    trace_id: str
    start: int
    duration: int
    name: str
    die: str
    failed: bool
    services: tuple[str, ...] = ()
    spans: int | None = None  # where the source says


@dataclass(frozen=True)
class TraceQuery:
    """Which traces to list; an empty field does not matter."""

    service: str = ""
    die: str = ""
    failed: bool | None = None
    min_duration_ms: float = 0.0
    limit: int = 100

    def traceql(self) -> str:
        """The query for Tempo. That nothing failed cannot be said in it."""
        parts = [f"{{ resource.service.name = {quoted(self.service)} }}"] if self.service else []
        if self.die:
            parts.append(f"{{ span.die.type = {quoted(self.die)} }}")
        if self.failed:
            parts.append("{ status = error }")
        if self.min_duration_ms:
            parts.append(f"{{ traceDuration >= {self.min_duration_ms:g}ms }}")
        return " && ".join(parts) or "{ }"


@dataclass(frozen=True)
class LogLine:
    """One log line; ``fields`` is what it says besides."""

    time: str  # RFC 3339
    level: str
    service: str
    message: str
    trace_id: str
    span_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class LogQuery:
    """Which lines to show; an empty field does not matter."""

    service: str = ""
    level: str = ""
    text: str = ""
    trace_id: str = ""
    span_id: str = ""
    limit: int = 300

    def logql(self) -> str:
        """The query for Loki."""
        labels = [f"service_name={quoted(self.service)}" if self.service else 'service_name=~".+"']
        if self.level:
            labels.append(f"level={quoted(self.level)}")
        query = f"{{{', '.join(labels)}}}"
        if self.text:
            query += f" |~ {quoted('(?i)' + re.escape(self.text))}"
        if self.trace_id:
            query += f" | trace_id={quoted(self.trace_id)}"
        if self.span_id:
            query += f" | span_id={quoted(self.span_id)}"
        return query


def quoted(text: str) -> str:
    """A string literal of TraceQL and LogQL."""
    return orjson.dumps(text).decode()


class TraceSource(Protocol):
    """Where traces come from. Every method raises :class:`SourceError` where that does not answer."""

    name: str

    async def trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace that have arrived, in no order."""

    async def traces(self, query: TraceQuery) -> list[TraceSummary]:
        """Traces that match, newest first."""


class LogSource(Protocol):
    """Where log lines come from."""

    name: str

    async def lines(self, query: LogQuery) -> list[LogLine]:
        """Lines that match, newest first."""


# --- OTLP JSON, as it stands in files and as Tempo answers it ---


def otlp_value(value: Mapping[str, Any]) -> Any:
    """An OTLP ``AnyValue`` as what it holds: ``{"intValue": "5"}`` is 5."""
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "arrayValue":
            return [otlp_value(item) for item in content.get("values", [])]
        if kind == "kvlistValue":
            return otlp_attributes(content.get("values", []))
        return content
    return None


def otlp_attributes(entries: Iterable[Mapping[str, Any]] | None) -> dict[str, Any]:
    return {str(entry["key"]): otlp_value(entry.get("value") or {}) for entry in entries or ()}


def otlp_events(entries: Iterable[Mapping[str, Any]] | None) -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (str(entry.get("name", "")), int(entry.get("timeUnixNano", 0)), otlp_attributes(entry.get("attributes")))
        for entry in entries or ()
    ]


def log_line(line: str, service: str = "", level: str = "unknown") -> LogLine:
    """A JSON log line; one that is none becomes a message of its own."""
    try:
        document = orjson.loads(line)
        if not isinstance(document, dict):
            raise ValueError
    except ValueError:
        return LogLine("", level, service, line, "", "", {})
    known = {
        name: str(document.pop(name, "") or "")
        for name in ("timestamp", "level", "logger", "message", "trace_id", "span_id")
    }
    return LogLine(
        known["timestamp"],
        known["level"] or level,
        known["logger"] or service,
        known["message"],
        known["trace_id"],
        known["span_id"],
        document,
    )


# --- what a trace shows ---


@dataclass(frozen=True)
class Row:
    """A span in its place: how deep, and whether its parent is missing."""

    span: Span
    depth: int
    orphan: bool


@dataclass(frozen=True)
class Segment:
    """A stretch of the critical path, in nanoseconds: what the end of the trace waited for then."""

    span: Span
    start: int
    finish: int


@dataclass(frozen=True)
class Trace:
    """A trace in the order in which it is shown: parents before children, siblings by their start.

    Attributes:
        own: nanoseconds in which a service was at work itself, rather than waiting for a span below; overlapping
            work of one service counts once.
        critical: the critical path, from the first to the last moment.
        missing: what says that spans are still to come: a root, a parent, the answering side of a call.
    """

    trace_id: str
    rows: Sequence[Row]
    own: Mapping[str, int]
    critical: Sequence[Segment]
    missing: str
    start: int = 0
    finish: int = 0
    hidden: int = field(default=0)  # spans beyond MAX_SPANS

    @property
    def duration(self) -> int:
        return self.finish - self.start

    @property
    def failed(self) -> bool:
        return any(row.span.failed for row in self.rows)


def arrange(trace_id: str, spans: Iterable[Span]) -> Trace:
    """Put the spans of a trace in order, and find out where its time went."""
    by_id = {span.span_id: span for span in spans}
    below: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(by_id.values(), key=lambda span: (span.start, span.span_id)):
        below[span.parent_id if span.parent_id in by_id else ""].append(span)
    rows: list[Row] = []
    seen: set[str] = set()
    # Spans that are each other's parents hang on nothing: after the roots, they start trees of their own.
    for top in [*below[""], *by_id.values()]:
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            rows.append(Row(span, depth, bool(span.parent_id) and span.parent_id not in by_id))
            waiting += [(child, depth + 1) for child in reversed(below[span.span_id]) if child is not span]
    if not rows:
        return Trace(trace_id, (), {}, (), "every span")
    critical = _critical_path([row.span for row in rows if row.depth == 0], below)
    return Trace(
        trace_id,
        rows[:MAX_SPANS],
        _own_times(rows, below),
        critical,
        _missing(rows, below),
        min(row.span.start for row in rows),
        max(row.span.finish for row in rows),
        max(0, len(rows) - MAX_SPANS),
    )


def _missing(rows: Sequence[Row], below: Mapping[str, Sequence[Span]]) -> str:
    if any(row.orphan for row in rows):
        return "a span that others name as their parent"
    if not any(not row.span.parent_id for row in rows):
        return "the root"
    for row in rows:
        span = row.span
        called = span.kind == CLIENT and "http.status_code" in span.attributes
        if called and not below.get(span.span_id):
            return "the answering side of a call"
    return ""


def _critical_path(tops: Sequence[Span], below: Mapping[str, Sequence[Span]]) -> list[Segment]:
    """From the end backwards: of what was under way, the span that ended last, and within it the same again."""
    top = max(tops, key=lambda span: span.finish)
    segments: list[Segment] = []
    seen: set[str] = set()
    # A span and the moment up to which it is looked at; or, done with its children, what is left of it.
    waiting: list[tuple[Span, int]] = [(top, top.finish)]
    while waiting:
        span, until = waiting.pop()
        children = [] if span.span_id in seen else sorted(below.get(span.span_id, ()), key=lambda child: child.finish)
        seen.add(span.span_id)
        cursor = until
        inside: list[tuple[Span, int]] = []
        for child in reversed(children):
            finish = min(child.finish, cursor)
            start = max(child.start, span.start)
            if finish <= start or child.span_id in seen:
                continue
            if finish < cursor:
                segments.append(Segment(span, finish, cursor))
            inside.append((child, finish))
            cursor = start
        if span.start < cursor:
            segments.append(Segment(span, span.start, cursor))
        waiting += inside
    return sorted(segments, key=lambda segment: segment.start)


def _own_times(rows: Sequence[Row], below: Mapping[str, Sequence[Span]]) -> dict[str, int]:
    stretches: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        span, cursor = row.span, row.span.start
        for child in below.get(span.span_id, ()):  # by their start
            if child.start > cursor:
                stretches[span.service].append((cursor, min(child.start, span.finish)))
            cursor = max(cursor, child.finish)
        stretches[span.service].append((cursor, span.finish))
    return {service: _covered(parts) for service, parts in stretches.items()}


def _covered(stretches: Iterable[tuple[int, int]]) -> int:
    """How much time the stretches cover together."""
    total = 0
    reached = 0
    for start, finish in sorted(stretches):
        if finish > reached:
            total += finish - max(start, reached)
            reached = finish
    return total


def duration_text(nanoseconds: float) -> str:
    """A duration as people read it, such as ``1.24 s``, ``183 ms`` or ``12 µs``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return (
                f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else f"{nanoseconds / size:.0f} {unit}"
            )
    return f"{nanoseconds:.0f} ns"
