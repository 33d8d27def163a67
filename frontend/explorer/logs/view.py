"""The view of log lines: their volume by level, filters, and lines that open in place."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import orjson

from frontend.browser.clock import SECOND, TimeRange
from frontend.explorer.context import Context
from frontend.explorer.grafana import explore_link
from frontend.explorer.model import FieldFilter, LogLine, LogQuery, LogSource, Volume, from_rfc3339

FOLLOW = 1.0  # seconds between two fetches
VOLUME_EVERY = 3.0  # seconds between two counts for the histogram
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "unknown")
CLASSES = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error", "DEBUG": "debug"}
MARKS = {"WARNING": "▲ ", "ERROR": "✖ ", "CRITICAL": "✖ "}
STEPS = 60  # of the histogram
MAX_FILTERS = 10
MAX_TEXT = 200
NAME = re.compile(r"[\w.]{1,100}")
NO_LINES = (
    "No line carries this span's id: lines are written in the span that answers a request."
    " These are the lines of the whole trace."
)


@dataclass
class Bar:
    """A step of the histogram: the number of lines by level, the most severe level at the bottom."""

    start: int
    end: int
    levels: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> int:
        return sum(self.levels.values())


class LogsView:
    """Shows the lines that match its controls."""

    name, title = "logs", "Logs"
    regions = ("logs-controls", "logs-volume", "logs-head", "lines")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._service = self._level = self._text = self._id = ""
        self._trace_of_span = ""  # the trace of the span whose lines were asked for
        self._filters: tuple[FieldFilter, ...] = ()
        self._page_files = False
        self._paused = False
        self._open: set[str] = set()  # keys of the lines that are open
        self._lines: list[LogLine] = []
        self._bars: list[Bar] = []
        self._note = ""
        self._asked: tuple[LogQuery, TimeRange] | None = None
        self._counted = 0.0
        on = context.bridge.on
        on("logs.service", lambda value: self._set(_service=value if value in context.telemetry.services else ""))
        on("logs.level", lambda value: self._set(_level=value if value in LEVELS else ""))
        on("logs.text", lambda value: self._set(_text=str(value or "")[:MAX_TEXT].strip()))
        on("logs.id", lambda value: self._set(_id=str(value or "")[:MAX_TEXT].strip().lower(), _trace_of_span=""))
        on("logs.page-files", lambda value: self._set(_page_files=bool(value)))
        on("logs.pause", self._pause)
        on("logs.open", self._toggle)
        on("logs.filter", lambda value: self._filter(value, False))
        on("logs.exclude", lambda value: self._filter(value, True))
        on("logs.unfilter", self._unfilter)
        on("logs.trace", self._open_trace)

    # --- the query ---

    def show(self, trace_id: str, span_id: str = "") -> None:
        """Show the lines of a trace, or of one of its spans where it has lines of its own."""
        self._service = self._level = self._text = ""
        self._filters = ()
        self._paused = False
        self._id, self._trace_of_span = span_id or trace_id, trace_id if span_id else ""
        self._draw_controls()

    def read(self, query: Mapping[str, str]) -> None:
        self._service = query.get("service", "") if query.get("service") in self._context.telemetry.services else ""
        self._level = query.get("level", "") if query.get("level") in LEVELS else ""
        self._text, self._id = query.get("text", "")[:MAX_TEXT], query.get("id", "")[:MAX_TEXT].lower()
        self._trace_of_span = query.get("of", "")[:32]
        self._page_files = query.get("files") == "1"
        self._filters = tuple(_parse(part) for part in query.get("where", "").split("&&") if part)[:MAX_FILTERS]
        self._draw_controls()

    def query(self) -> dict[str, str]:
        where = "&&".join(f"{entry.name}{'!=' if entry.exclude else '='}{entry.value}" for entry in self._filters)
        found = {
            "service": self._service,
            "level": self._level,
            "text": self._text,
            "id": self._id,
            "of": self._trace_of_span,
            "where": where,
            "files": "1" if self._page_files else "",
        }
        return {name: value for name, value in found.items() if value}

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self._changed()

    def _changed(self) -> None:
        self._counted = 0.0
        self._draw_controls()
        self._context.changed(False)

    def _pause(self, _value: Any) -> None:
        self._paused = not self._paused
        self._draw_head()
        self._context.changed(False)

    def _filter(self, value: Any, exclude: bool) -> None:
        if not (isinstance(value, str) and "=" in value):
            return
        name, _, wanted = value.partition("=")
        entry = FieldFilter(name, wanted[:MAX_TEXT], exclude)
        if NAME.fullmatch(name) and entry not in self._filters and len(self._filters) < MAX_FILTERS:
            self._filters = (*self._filters, entry)
            self._changed()

    def _unfilter(self, place: Any) -> None:
        if str(place).isdigit() and int(place) < len(self._filters):
            self._filters = tuple(entry for at, entry in enumerate(self._filters) if at != int(place))
            self._changed()

    def _toggle(self, key: Any) -> None:
        self._open ^= {str(key)}
        self._draw_lines()

    def _open_trace(self, key: Any) -> None:
        line = next((line for found, line in self._keyed() if found == key), None)
        if line:
            self._context.open_trace(line.trace_id, line.span_id)

    def _query(self) -> LogQuery:
        cut = self._id
        exact = len(cut) == 16
        since, until = (0, 0) if cut else self._context.range.bounds()
        return LogQuery(
            service=self._service,
            level=self._level,
            text=self._text,
            trace_id="" if exact else cut,
            span_id=cut if exact else "",
            filters=self._filters,
            page_files=self._page_files or bool(cut),
            since=since,
            until=until,
        )

    # --- fetch and draw ---

    def draw(self) -> None:
        self._draw_controls()
        self._context.show("logs-head", "logs/loading.html")

    def show_failure(self, message: str) -> None:
        self._context.show("logs-head", "failure.html", message=message)

    async def refresh(self) -> float | None:
        source, query = self._context.telemetry.logs, self._query()
        asked = (_without_time(query), self._context.range)
        if source is None or (self._paused and asked == self._asked):
            return None
        lines = await source.lines(query)
        note = ""
        if not lines and query.span_id and self._trace_of_span:
            # A line has the id of the span in which it was written; spans of calls and queries write no lines.
            query, note = replace(query, span_id="", trace_id=self._trace_of_span), NO_LINES
            lines = await source.lines(query)
        if asked != (_without_time(self._query()), self._context.range):
            return 0.0  # the user has changed the query meanwhile
        # With an id, in the order in which they were written.
        self._lines = lines[::-1] if query.trace_id or query.span_id else lines
        self._asked, self._note = asked, note
        self._draw_head()
        self._draw_lines()
        if time.monotonic() - self._counted > VOLUME_EVERY:  # after the lines, which the user waits for
            self._counted = time.monotonic()
            await self._count(source, query)
        return None if self._paused else FOLLOW

    async def _count(self, source: LogSource, query: LogQuery) -> None:
        start, end = self._stretch(query, self._lines)
        # Whole seconds: every source counts in multiples of the same step.
        step = max(1, -(-(end - start) // (STEPS * SECOND))) * SECOND
        volume = await source.volume(replace(query, since=start, until=end + step), step)
        self._bars = _bars(volume, start, end, step)
        self._draw_volume()

    def _stretch(self, query: LogQuery, lines: Sequence[LogLine]) -> tuple[int, int]:
        """The period that the histogram shows: the time range, or that of the lines where the range has no limit."""
        times = [at for line in lines if (at := from_rfc3339(line.time))]
        now = time.time_ns()
        start = query.since or min(times, default=now)
        return start, query.until or (now if query.since else max(times, default=now))

    def _draw_controls(self) -> None:
        self._context.show(
            "logs-controls",
            "logs/controls.html",
            services=self._context.telemetry.services,
            levels=LEVELS,
            service=self._service,
            level=self._level,
            text=self._text,
            id=self._id,
            page_files=self._page_files,
            filters=self._filters,
        )

    def _draw_volume(self) -> None:
        self._context.show(
            "logs-volume",
            "logs/volume.html",
            bars=self._bars,
            highest=max((bar.total for bar in self._bars), default=1) or 1,
            order=LEVELS[::-1],
            classes=CLASSES,
        )

    def _draw_head(self) -> None:
        query = self._query()
        self._context.show(
            "logs-head",
            "logs/head.html",
            count=len(self._lines),
            more=len(self._lines) == query.limit,
            paused=self._paused,
            note=self._note,
            exact=bool(self._id),
            range=self._context.range.name(self._context.clock),
            link=explore_link(self._context, "loki", [{"expr": query.logql()}]),
        )

    def _keyed(self) -> list[tuple[str, LogLine]]:
        """Lines, each with a key that identifies it after the next fetch too."""
        seen: dict[str, int] = defaultdict(int)
        found = []
        for line in self._lines:
            text = f"{line.time}{line.service}{line.span_id}{line.message}"
            key = blake2b(text.encode(errors="replace"), digest_size=6).hexdigest()
            seen[key] += 1
            found.append((f"{key}-{seen[key]}", line))
        return found

    def _draw_lines(self) -> None:
        keyed = self._keyed()
        self._open &= {key for key, _ in keyed}
        clock = self._context.clock
        rows = []
        for key, line in keyed:
            at = from_rfc3339(line.time)
            known = {"level": line.level, "service": line.service, "trace_id": line.trace_id, "span_id": line.span_id}
            facts = {}
            if key in self._open:
                facts = {name: _text(value) for name, value in {**known, **line.fields}.items() if value != ""}
            rows.append((key, line, clock.exact(at) if at else "", clock.full(at) if at else line.time, facts))
        self._context.show("lines", "logs/lines.html", rows=rows, marks=MARKS)


def _text(value: Any) -> str:
    """A field's value as filters compare it: its JSON, but a string without quotes."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _without_time(query: LogQuery) -> LogQuery:
    return replace(query, since=0, until=0)


def _parse(text: str) -> FieldFilter:
    """A filter from the address: ``name=value`` or ``name!=value``."""
    name, _, value = text.partition("=")
    exclude = name.endswith("!")
    name = name.rstrip("!")
    return FieldFilter(name if NAME.fullmatch(name) else "level", value[:MAX_TEXT], exclude)


def _bars(volume: Sequence[Volume], start: int, end: int, step: int) -> list[Bar]:
    first = start // step * step
    bars = {at: Bar(at, at + step) for at in range(first, end + 1, step)}
    for entry in volume:
        bar = bars.get(entry.start // step * step)
        if bar:
            bar.levels[entry.level if entry.level in LEVELS else "unknown"] += entry.count
    return list(bars.values())
