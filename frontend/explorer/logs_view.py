"""Log lines: of one trace or span from the first to the last, or the latest of all services."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from frontend.explorer.model import LogLine, LogQuery
from frontend.explorer.parts import TextTable, bar, definitions, failure, grafana_link, html
from frontend.explorer.sources import Telemetry

FOLLOW = 1.0  # seconds between two looks
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "unknown")
MARKS = {"WARNING": "▲ WARNING", "ERROR": "✖ ERROR", "CRITICAL": "✖ CRITICAL"}
COLUMNS = {"time": 112, "level": 92, "service": 96, "message": None, "fields": None, "trace": 84}


class LogsView:
    """Shows the lines that its controls ask for.

    Args:
        telemetry: where lines come from.
        draw: runs a function in the document's own time.
        changed: called when the user asks for something else.
        show_trace: shows a trace, with a span of it selected.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        draw: Callable[..., None],
        changed: Callable[[], None],
        show_trace: Callable[[str, str], None],
    ) -> None:
        self._telemetry = telemetry
        self._draw_later = draw
        self._show_trace = show_trace
        self._service = pmui.Select(
            label="Service", options={"all": "", **{name: name for name in telemetry.services}}, value="", width=150
        )
        self._level = pmui.Select(
            label="Level", options={"all": "", **{name: name for name in LEVELS}}, value="", width=130
        )
        self._text = pmui.TextInput(label="Text", value="", width=180)
        self._id = pmui.TextInput(label="Trace or span id", value="", width=200)
        self._follow = pmui.Switch(label="Follow", value=True)
        controls = (self._service, self._level, self._text, self._id, self._follow)
        for control in controls:
            if control is not self._follow:
                control.size = "small"
            control.param.watch(lambda _event: changed(), "value")
        self._head = html()
        self._table = TextTable(COLUMNS, self._clicked, 480, "lines")
        self._lines: list[LogLine] = []
        self._detail = html(css_classes=["line"])
        self._asked: LogQuery | None = None
        self.panel = pn.Column(
            pn.FlexBox(*controls, align_items="center"),
            self._head,
            self._table.panel,
            self._detail,
            sizing_mode="stretch_width",
        )

    def show(self, trace_or_span_id: str) -> None:
        """Show the lines of a trace or of a span."""
        self._service.value = self._level.value = self._text.value = ""
        self._id.value = trace_or_span_id

    def dark(self, dark: bool) -> None:
        """Its table follows the page by itself."""

    def say(self, message: str) -> None:
        self._head.object = failure(message)

    def _query(self) -> LogQuery:
        wanted = self._id.value.strip().lower()
        return LogQuery(
            service=self._service.value,
            level=self._level.value,
            text=self._text.value.strip(),
            trace_id=wanted if len(wanted) != 16 else "",
            span_id=wanted if len(wanted) == 16 else "",
        )

    async def refresh(self) -> float | None:
        """Fetch and draw; returns the seconds after which to do so again, ``None`` for never."""
        source, query = self._telemetry.logs, self._query()
        if source is None:
            return None
        self._draw_later(self._draw, await source.lines(query), query)
        return FOLLOW if self._follow.value or self._telemetry.behind else None

    def _draw(self, lines: list[LogLine], query: LogQuery) -> None:
        if query != self._query():
            return  # the user has asked for something else meanwhile
        most = f"the latest {len(lines)}" if len(lines) == query.limit else str(len(lines))
        self._head.object = bar(
            f"<span><b>{most}</b> lines</span>",
            '<span class="soft">click a line for all of it, its trace id for its trace</span>',
            '<span class="end"></span>',
            grafana_link(self._telemetry.grafana, "loki", [{"expr": query.logql()}]),
            self._telemetry.badge(self._telemetry.logs),
        )
        if query.trace_id or query.span_id:
            lines = lines[::-1]  # a story is told from its beginning
        if lines == self._lines and query == self._asked:
            return
        if query != self._asked:
            self._detail.object = ""
        self._lines, self._asked = lines, query
        self._table.show(
            [
                (
                    line.time[11:23],
                    MARKS.get(line.level, line.level),
                    line.service,
                    line.message,
                    " ".join(f"{name}={value}" for name, value in line.fields.items()),
                    line.trace_id[:8],
                )
                for line in lines
            ],
        )

    def _clicked(self, event: Any) -> None:
        if not 0 <= event.row < len(self._lines):
            return
        line = self._lines[event.row]
        if event.column == "trace" and line.trace_id:
            self._show_trace(line.trace_id, line.span_id)
            return
        known = {
            "time": line.time,
            "level": line.level,
            "service": line.service,
            "message": line.message,
            "trace_id": line.trace_id,
            "span_id": line.span_id,
        }
        self._detail.object = definitions({name: value for name, value in known.items() if value} | dict(line.fields))
