"""The data types of the explorer: traces, log lines and queries for them, independent of their source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

TRACE_ID = re.compile(r"[0-9a-f]{32}")
SERVER, CLIENT = 2, 3  # span kinds, as OTLP numbers them
ERROR = 2  # a status code, likewise
MAX_SPANS = 2000  # of one trace that are shown
LOKI_LABELS = {"service": "service_name"}  # names of fields in Loki that differ from those in lines
BOUNDS = tuple(int(ms * 1e6) for ms in (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500))  # nanoseconds
PAGE_FILES = '"GET /static/'  # part of every access line of the page's static files


class SourceError(Exception):
    """A source does not respond; the message is shown to the user."""


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
    spans: int | None = None  # if the source gives it


@dataclass(frozen=True)
class TraceQuery:
    """Which traces to list; an empty field matches all."""

    service: str = ""
    die: str = ""
    failed: bool | None = None
    min_duration_ms: float = 0.0
    limit: int = 100
    since: int = 0  # nanoseconds since 1970, as is the next; 0: no limit
    until: int = 0

    def traceql(self) -> str:
        """The query for Tempo. It cannot express that no span failed."""
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
    """One log line; ``fields`` are its other fields."""

    time: str  # RFC 3339
    level: str
    service: str
    message: str
    trace_id: str
    span_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class FieldFilter:
    """Lines whose field has this value; with ``exclude``, all other lines."""

    name: str
    value: str
    exclude: bool = False


@dataclass(frozen=True)
class LogQuery:
    """Which lines to show; an empty field matches all. Ids may be abbreviated to their first digits."""

    service: str = ""
    level: str = ""
    text: str = ""
    trace_id: str = ""
    span_id: str = ""
    filters: tuple[FieldFilter, ...] = ()
    page_files: bool = True  # whether lines about the page's own static files are included
    limit: int = 300
    since: int = 0  # nanoseconds since 1970, as is the next; 0: no limit
    until: int = 0

    def logql(self) -> str:
        """The query for Loki."""
        labels = [f"service_name={quoted(self.service)}" if self.service else 'service_name=~".+"']
        if self.level:
            labels.append(f"level={quoted(self.level)}")
        query = f"{{{', '.join(labels)}}}"
        if self.text:
            query += f" |~ {quoted('(?i)' + re.escape(self.text))}"
        if not self.page_files:
            query += f" != {quoted(PAGE_FILES)}"
        for name, wanted, digits in (("trace_id", self.trace_id, 32), ("span_id", self.span_id, 16)):
            if wanted:
                cut = len(wanted) < digits
                query += f" | {name}{'=~' if cut else '='}{quoted(re.escape(wanted) + '.*' if cut else wanted)}"
        if self.filters:
            query += " | json"
        for entry in self.filters:
            label = LOKI_LABELS.get(entry.name, entry.name).replace(".", "_")
            query += f" | {label}{'!=' if entry.exclude else '='}{quoted(entry.value)}"
        return query


def quoted(text: str) -> str:
    """A string literal of TraceQL and LogQL."""
    return orjson.dumps(text).decode()


@dataclass(frozen=True)
class Cell:
    """A cell of the heat map: requests that a service handled at about the same time, in about the same duration."""

    service: str
    start: int  # of its time step, nanoseconds since 1970
    bucket: int  # the place of its duration in BOUNDS, len(BOUNDS) above all of them
    count: int
    failed: int
    trace_id: str  # of one of them


@dataclass(frozen=True)
class Edge:
    """Requests from one service to another, or queries to a database. Durations are nanoseconds."""

    caller: str  # empty where they came from outside
    service: str  # the callee; of queries, the database system
    count: int
    failed: int
    median: float
    p95: float
    trace_id: str  # of the slowest


@dataclass(frozen=True)
class Volume:
    """The number of lines of a level in the period that starts here."""

    start: int  # nanoseconds since 1970
    level: str
    count: int


class TraceSource(Protocol):
    """A source of traces. Every method raises :class:`SourceError` when it does not respond."""

    name: str

    async def trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace that have arrived, in no order."""

    async def traces(self, query: TraceQuery) -> list[TraceSummary]:
        """Traces that match, newest first."""

    async def heat(self, since: int, until: int, step: int) -> list[Cell]:
        """Requests by service, time and duration, between two points in time, in steps of ``step`` nanoseconds."""

    async def edges(self, since: int, until: int) -> list[Edge]:
        """Calls between services between two points in time, nanoseconds since 1970; 0 for no limit."""


class LogSource(Protocol):
    """A source of log lines."""

    name: str

    async def lines(self, query: LogQuery) -> list[LogLine]:
        """Lines that match, newest first."""

    async def volume(self, query: LogQuery, step: int) -> list[Volume]:
        """The number of matching lines by level, in steps of ``step`` nanoseconds."""


# --- OTLP JSON, as in the files and in the responses of Tempo ---


def otlp_value(value: Mapping[str, Any]) -> Any:
    """The Python value of an OTLP ``AnyValue``: ``{"intValue": "5"}`` is 5."""
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
    """A JSON log line; the text of any other line becomes its message."""
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


def duration_text(nanoseconds: float) -> str:
    """A readable duration, such as ``1.24 s``, ``183 ms`` or ``12 µs``: three significant digits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        value = nanoseconds / size
        if value >= 0.9995:  # a value that rounds to 1000 of the smaller unit is 1 of this
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
    return f"{nanoseconds:.0f} ns"


def rfc3339(nanoseconds: int) -> str:
    """A point in time as log lines have it; empty for 0, which stands for no limit."""
    if not nanoseconds:
        return ""
    at = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def from_rfc3339(text: str) -> int | None:
    """Nanoseconds since 1970 of a log line's timestamp; ``None`` if it is invalid."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000) * 1_000_000
    except ValueError:
        return None
