"""The explorer as one piece of the page: its views in tabs, and the task that keeps the open one fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.io.state import set_curdoc

from frontend.explorer.logs_view import LogsView
from frontend.explorer.model import SourceError
from frontend.explorer.recent_view import RecentView
from frontend.explorer.sources import Telemetry
from frontend.explorer.trace_view import TraceView

log = logging.getLogger(__name__)

TRACE, LOGS, RECENT = range(3)
RETRY = 2.0  # seconds after which a source that did not answer is asked again


class Explorer:
    """The explorer of one browser session.

    What it shows is fetched by a task of its own, only for the view that is open, and drawn in the document's own
    time: neither a source that is slow nor one that is away holds up the dice.

    Args:
        telemetry: where everything comes from.
        dice: the dice there are.
        trace_id: a trace to show first; empty for none.
    """

    def __init__(self, telemetry: Telemetry, dice: list[str], trace_id: str) -> None:
        self._document = pn.state.curdoc
        self._wake = asyncio.Event()
        self._trace = TraceView(telemetry, self._draw, self.show_lines)
        self._logs = LogsView(telemetry, self._draw, self._wake.set, self.show_trace)
        self._recent = RecentView(telemetry, dice, self._draw, self._wake.set, self.show_trace)
        self._views = (self._trace, self._logs, self._recent)
        self._tabs = pmui.Tabs(
            ("Trace", self._trace.panel),
            ("Logs", self._logs.panel),
            ("Recent traces", self._recent.panel),
            sizing_mode="stretch_width",
        )
        self._tabs.param.watch(lambda _event: self._wake.set(), "active")
        if trace_id:
            self._trace.show(trace_id)
        task = asyncio.create_task(self._keep_fresh())
        pn.state.on_session_destroyed(lambda _context: task.cancel())

    def view(self) -> pmui.Paper:
        return pmui.Paper(self._tabs, sizing_mode="stretch_width", sx={"p": 1})

    def dark(self, dark: bool) -> None:
        """Follow the page's light or dark scheme."""
        self._trace.dark = dark

    def show_trace(self, trace_id: str, span_id: str = "") -> None:
        """Show a trace, now or as soon as it arrives, and name it in the page's address."""
        self._trace.show(trace_id, span_id)
        self._tabs.active = TRACE
        if pn.state.location is not None:
            pn.state.location.update_query(trace=trace_id)
        self._wake.set()

    def show_lines(self, trace_or_span_id: str) -> None:
        """Show the log lines of a trace or of a span."""
        self._logs.show(trace_or_span_id)
        self._tabs.active = LOGS
        self._wake.set()

    async def _keep_fresh(self) -> None:
        while True:
            self._wake.clear()
            view = self._views[self._tabs.active]
            wait: float | None = RETRY
            try:
                wait = await view.refresh()
            except SourceError as error:
                self._draw(view.say, str(error))
            except Exception:  # a defect; the page goes on
                log.exception("The telemetry could not be fetched", extra={"fields": {}})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    def _draw(self, draw: Callable[..., None], *values: Any) -> None:
        def drawn() -> None:
            with set_curdoc(self._document):
                try:
                    draw(*values)
                except Exception:
                    log.exception("The telemetry could not be drawn", extra={"fields": {}})

        self._document.add_next_tick_callback(drawn)
