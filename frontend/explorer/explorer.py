"""The explorer as one piece of the page: its views in tabs, and the task that keeps the open one fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import panel as pn
import panel_material_ui as pmui
from panel.io.state import set_curdoc

from frontend.explorer.logs_view import LogsView
from frontend.explorer.metrics_view import MetricsView, Promise
from frontend.explorer.model import TRACE_ID, SourceError
from frontend.explorer.parts import html
from frontend.explorer.recent_view import RecentView
from frontend.explorer.sources import Telemetry
from frontend.explorer.trace_view import TraceView

log = logging.getLogger(__name__)

TRACE, LOGS, METRICS, RECENT = range(4)
TITLES = ("Trace", "Logs", "Metrics", "Recent traces")
NOTHING = '<div class="empty">Roll a die: the way of that roll through the services appears here.</div>'
RETRY = 2.0  # seconds after which a source that did not answer is asked again

V = TypeVar("V", TraceView, LogsView, MetricsView, RecentView)


class Explorer:
    """The explorer of one browser session.

    What it shows is fetched by a task of its own, only for the view that is open, and drawn in the document's own
    time: neither a source that is slow nor one that is away holds up the dice.

    Args:
        telemetry: where everything comes from.
        dice: the dice there are.
        promise: asks for a die's faces and the share of its rolls that fail; ``None`` when that cannot be had.
        trace_id: a trace to show first; empty for none.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        dice: list[str],
        promise: Callable[[str], Awaitable[Promise | None]],
        trace_id: str,
    ) -> None:
        self._telemetry = telemetry
        self._promise = promise
        self._dice = dice
        self._dark = False
        self._document = pn.state.curdoc
        self._wake = asyncio.Event()
        # A view is made when it is first opened: each costs the page a good part of what the rest of it does.
        self._made: dict[int, TraceView | LogsView | MetricsView | RecentView] = {}
        self._places = [pn.Column(html(), sizing_mode="stretch_width", min_height=320) for _ in TITLES]
        self._places[TRACE].objects = [html(NOTHING)]
        self._tabs = pmui.Tabs(*zip(TITLES, self._places, strict=True), sizing_mode="stretch_width")
        self._tabs.param.watch(self._opened, "active")
        if trace_id:
            self._trace().show(trace_id)
        self._task: asyncio.Task[None] | None = None
        # Not before the browser shows the page: what is drawn while it still builds its side may not be seen there.
        pn.state.onload(self._start)
        pn.state.on_session_destroyed(lambda _context: self._stop())

    def view(self) -> pmui.Paper:
        return pmui.Paper(self._tabs, sizing_mode="stretch_width", sx={"p": 1})

    def dark(self, dark: bool) -> None:
        """Follow the page's light or dark scheme."""
        self._dark = dark
        for view in self._made.values():
            view.dark(dark)

    def show_trace(self, trace_id: str, span_id: str = "") -> None:
        """Show a trace, now or as soon as it arrives, and name it in the page's address."""
        if not TRACE_ID.fullmatch(trace_id):
            return  # it may come from a log line, which may hold anything
        self._trace().show(trace_id, span_id)
        self._tabs.active = TRACE
        if pn.state.location is not None:
            pn.state.location.update_query(trace=trace_id)
        self._wake.set()

    def show_lines(self, trace_or_span_id: str) -> None:
        """Show the log lines of a trace or of a span."""
        self._logs().show(trace_or_span_id)
        self._tabs.active = LOGS
        self._wake.set()

    # --- the views ---

    def _trace(self) -> TraceView:
        return self._view(TRACE, lambda: TraceView(self._telemetry, self._draw, self.show_lines))

    def _logs(self) -> LogsView:
        return self._view(LOGS, lambda: LogsView(self._telemetry, self._draw, self._wake.set, self.show_trace))

    def _metrics(self) -> MetricsView:
        return self._view(
            METRICS, lambda: MetricsView(self._telemetry, self._dice, self._promise, self._draw, self._wake.set)
        )

    def _recent(self) -> RecentView:
        return self._view(
            RECENT, lambda: RecentView(self._telemetry, self._dice, self._draw, self._wake.set, self.show_trace)
        )

    def _view(self, place: int, make: Callable[[], V]) -> V:
        view = self._made.get(place)
        if view is None:
            view = self._made[place] = make()
            view.dark(self._dark)
            self._places[place].objects = [view.panel]
        return cast(V, view)

    def _opened(self, event: Any) -> None:
        if event.new != TRACE:  # that one is made when there is a trace to show
            (self._logs, self._metrics, self._recent)[event.new - LOGS]()
        self._wake.set()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._keep_fresh())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep_fresh(self) -> None:
        while True:
            self._wake.clear()
            view = self._made.get(self._tabs.active)
            wait: float | None = None
            try:
                wait = await view.refresh() if view else None
            except SourceError as error:
                wait = RETRY
                if view:
                    self._draw(view.say, str(error))
            except Exception:  # a defect; the page goes on
                wait = RETRY
                log.exception("The telemetry could not be fetched", extra={"fields": {}})
                if view:
                    self._draw(view.say, "This telemetry makes no sense here; the frontend's log has the details.")
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
