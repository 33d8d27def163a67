"""Recent traces, to search by service, die, status and duration."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from frontend.explorer.model import TraceQuery, TraceSummary, duration_text
from frontend.explorer.parts import TextTable, bar, failure, grafana_link, html
from frontend.explorer.sources import Telemetry

FOLLOW = 2.0  # seconds between two looks
STATUS = {"any": "", "ok": "ok", "failed": "failed"}
COLUMNS = {"time": 84, "what": None, "die": 80, "services": None, "spans": 66, "took": 84, "status": 84}


class RecentView:
    """Lists the traces that its controls ask for.

    Args:
        telemetry: where traces come from.
        dice: the dice there are, to choose from.
        draw: runs a function in the document's own time.
        changed: called when the user asks for something else.
        show_trace: shows a trace.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        dice: list[str],
        draw: Callable[..., None],
        changed: Callable[[], None],
        show_trace: Callable[[str], None],
    ) -> None:
        self._telemetry = telemetry
        self._draw_later = draw
        self._show_trace = show_trace
        self._service = pmui.Select(
            label="Service", options={"any": "", **{name: name for name in telemetry.services}}, value="", width=150
        )
        self._die = pmui.Select(label="Die", options={"any": "", **{name: name for name in dice}}, value="", width=120)
        self._status = pmui.Select(label="Status", options=STATUS, value="", width=120)
        self._least = pmui.FloatInput(label="At least, ms", value=0, start=0, step=50, width=140)
        controls = (self._service, self._die, self._status, self._least)
        for control in controls:
            control.size = "small"
            control.param.watch(lambda _event: changed(), "value")
        self._head = html()
        self._table = TextTable(COLUMNS, self._clicked, 560, "traces")
        self._found: list[TraceSummary] = []
        self.panel = pn.Column(
            pn.FlexBox(*controls, align_items="center"), self._head, self._table.panel, sizing_mode="stretch_width"
        )

    def dark(self, dark: bool) -> None:
        """Its table follows the page by itself."""

    def say(self, message: str) -> None:
        self._head.object = failure(message)

    def _query(self) -> TraceQuery:
        least = self._least.value
        return TraceQuery(
            service=self._service.value,
            die=self._die.value,
            failed={"ok": False, "failed": True}.get(self._status.value),
            min_duration_ms=float(least) if isinstance(least, int | float) and least > 0 else 0.0,
        )

    async def refresh(self) -> float | None:
        """Fetch and draw; returns the seconds after which to do so again, ``None`` for never."""
        source, query = self._telemetry.traces, self._query()
        if source is None:
            return None
        self._draw_later(self._draw, await source.traces(query), query)
        return FOLLOW

    def _draw(self, found: list[TraceSummary], query: TraceQuery) -> None:
        if query != self._query():
            return  # the user has asked for something else meanwhile
        most = f"the latest {len(found)}" if len(found) == query.limit else str(len(found))
        self._head.object = bar(
            f"<span><b>{most}</b> traces</span>",
            '<span class="soft">click one to see it</span>',
            '<span class="end"></span>',
            grafana_link(self._telemetry.grafana, "tempo", [{"queryType": "traceql", "query": query.traceql()}]),
            self._telemetry.badge(self._telemetry.traces),
        )
        if found == self._found:
            return
        self._found = found
        self._table.show(
            [
                (
                    time.strftime("%H:%M:%S", time.localtime(trace.start / 1e9)),
                    trace.name,
                    trace.die,
                    ", ".join(trace.services),
                    "" if trace.spans is None else trace.spans,
                    duration_text(trace.duration),
                    "✖ failed" if trace.failed else "ok",
                )
                for trace in found
            ],
        )

    def _clicked(self, event: Any) -> None:
        if 0 <= event.row < len(self._found):
            self._show_trace(self._found[event.row].trace_id)
