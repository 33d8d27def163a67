"""The explorer: its views in tabs, and the task that refreshes the open one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode

from frontend.browser.bridge import Bridge
from frontend.browser.clock import DEFAULT_RANGE, RANGE_NAMES, Clock, TimeRange
from frontend.browser.render import render
from frontend.explorer.context import Context, View
from frontend.explorer.learn.view import LearnView
from frontend.explorer.logs.view import LogsView
from frontend.explorer.map.view import MapView
from frontend.explorer.metrics.view import MetricsView, Specification
from frontend.explorer.model import TRACE_ID, SourceError, TraceQuery
from frontend.explorer.recent.view import RecentView
from frontend.explorer.sources import Telemetry
from frontend.explorer.trace.view import TraceView

log = logging.getLogger(__name__)

RETRY = 2.0  # seconds until a source that did not respond is queried again
MAX_ADDRESS = 4000  # characters of a query that are parsed


def parse_query(search: object) -> dict[str, str]:
    """The parameters of a query such as ``?tab=logs``; of a repeated one, the last value."""
    return dict(parse_qsl(str(search or "").removeprefix("?")[:MAX_ADDRESS]))


class Explorer:
    """The explorer of one browser session.

    A task of its own fetches the content of the open view only, so that a slow or unreachable source does not
    delay rolls. The page's address contains the open view and its state.

    Args:
        telemetry: the sources.
        dice: the names of all dice.
        specification: fetches a die's faces and the share of its rolls that fail; returns ``None`` when that fails.
        bridge: the connection to the browser.
        clock: formats times.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        dice: list[str],
        specification: Callable[[str], Awaitable[Specification | None]],
        bridge: Bridge,
        clock: Clock,
    ) -> None:
        self._bridge = bridge
        self._clock = clock
        self._context = context = Context(telemetry, bridge, clock, dice)
        context.changed = self._changed
        context.open_trace = self.open_trace
        context.show_lines = self._show_lines
        context.show_metrics = self._show_metrics
        context.show_traces = self._show_traces
        self._trace = TraceView(context)
        self._logs = LogsView(context)
        self._metrics = MetricsView(context, specification)
        self._recent = RecentView(context)
        views: list[View] = [self._trace, self._logs, self._metrics, MapView(context), self._recent]
        self._learn = LearnView(context, telemetry.learn) if telemetry.learn is not None else None
        if self._learn is not None:
            views.append(self._learn)
        self._views = {view.name: view for view in views}  # the tabs, from left to right
        self._tab = "trace"
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warmed: asyncio.Task[None] | None = None
        on = bridge.on
        on("tab", self._tab_chosen)
        on("address", self._address_changed)
        on("trace.open", lambda value: self.open_trace(str(value)))
        on("metrics.of", lambda value: self._show_metrics(str(value)))
        on("recent.of", lambda value: self._show_traces(str(value)))
        on("range", self._range_chosen)
        on("range.between", lambda value: self._set_range(TimeRange.read(value)))
        on("range.from", lambda value: self._bound_chosen(start=clock.parse_local(value)))
        on("range.to", lambda value: self._bound_chosen(end=clock.parse_local(value)))
        for view in self._views.values():
            view.draw()
        self._draw_range()

    @property
    def views(self) -> Collection[View]:
        """The tabs, from left to right."""
        return self._views.values()

    def start(self, query: Mapping[str, str]) -> None:
        """Start with the view that the address names, once the browser is connected.

        The browser already shows that tab, or another one that the user has chosen meanwhile.
        """
        self._read(query)
        self._task = asyncio.create_task(self._keep_fresh())
        self._warmed = asyncio.create_task(self._warm_up())
        if self._learn is not None:
            self._learn.start()

    async def _warm_up(self) -> None:
        """Send a first query, because the index of the files takes a while to start."""
        if self._context.telemetry.traces is not None:
            with suppress(SourceError):
                await self._context.telemetry.traces.traces(TraceQuery(limit=1))

    def stop(self) -> None:
        for task in (self._task, self._warmed):
            if task is not None:
                task.cancel()
        if self._learn is not None:
            self._learn.stop()

    # --- what is shown ---

    def open_trace(self, trace_id: str, span_id: str = "") -> None:
        """Show a trace, now or as soon as it arrives."""
        if TRACE_ID.fullmatch(trace_id):  # the id may come from a log line, which may contain anything
            self._trace.open(trace_id, span_id)
            self._show("trace")

    def dice_known(self, dice: list[str]) -> None:
        """Offer these dice in the selection."""
        self._context.dice[:] = dice
        self._recent.draw_controls()
        self._metrics.choose_die()

    def rolled(self, trace_id: str) -> None:
        """Select a new roll's trace for the trace tab, whichever tab is open."""
        self._trace.open(trace_id)
        self._note_address(push=self._tab == "trace")
        self._wake.set()

    def _show_lines(self, trace_id: str, span_id: str = "") -> None:
        self._logs.show(trace_id, span_id)
        self._show("logs")

    def _show_metrics(self, service: str) -> None:
        self._metrics.show(service)
        self._show("metrics")

    def _show_traces(self, service: str) -> None:
        self._recent.show(service)
        self._show("recent")

    def _show(self, tab: str) -> None:
        self._tab = tab
        self._bridge.send(tab=tab, reveal="tabs")
        self._changed(True)

    # --- what the user does ---

    def _changed(self, push: bool) -> None:
        self._note_address(push)
        self._wake.set()

    def _tab_chosen(self, name: Any) -> None:
        if name in self._views and name != self._tab:
            self._tab = name
            self._changed(True)

    def _range_chosen(self, value: Any) -> None:
        if value == "fixed":
            since, until = self._context.range.bounds()
            now = self._clock.now()
            self._set_range(TimeRange("", since or now - 3600 * 10**9, until or now))
        else:
            self._set_range(TimeRange.read(value))

    def _bound_chosen(self, start: int | None = None, end: int | None = None) -> None:
        now = self._context.range
        start, end = start or now.start, end or now.end
        if start < end:
            self._set_range(TimeRange("", start, end))
        else:
            self._bridge.send(say="The time range must end after it starts.")
            self._draw_range()

    def _set_range(self, wanted: TimeRange) -> None:
        self._context.range = wanted
        self._draw_range()
        self._changed(True)

    def _address_changed(self, search: Any) -> None:
        self._read(parse_query(search))
        self._bridge.send(tab=self._tab)
        self._wake.set()

    # --- the address ---

    def _read(self, query: Mapping[str, str]) -> None:
        self._tab = query.get("tab", "") if query.get("tab") in self._views else "trace"
        self._context.range = TimeRange.read(query.get("range", DEFAULT_RANGE))
        # The trace is kept while another tab is open; all other parameters belong to the open tab.
        self._trace.read(query if self._tab == "trace" else {"trace": query.get("trace", "")})
        if self._tab != "trace":
            self._views[self._tab].read(query)
        self._draw_range()

    def _note_address(self, push: bool) -> None:
        query = {} if self._tab == "trace" else {"tab": self._tab}
        if self._trace.trace_id:
            query["trace"] = self._trace.trace_id
        query |= self._views[self._tab].query()
        if str(self._context.range) != DEFAULT_RANGE:
            query["range"] = str(self._context.range)
        self._bridge.send(address={"query": f"?{urlencode(query)}" if query else "", "push": push})

    def _draw_range(self) -> None:
        wanted, clock = self._context.range, self._clock
        fixed = None if wanted.last else (clock.local_input(wanted.start), clock.local_input(wanted.end))
        html = render("templates/range.html", range=wanted, ranges=RANGE_NAMES, fixed=fixed, zone=clock.zone)
        self._bridge.show("range", html)

    # --- fetching ---

    async def _keep_fresh(self) -> None:
        while True:
            self._wake.clear()
            view = self._views[self._tab]
            wait: float | None = RETRY
            try:
                wait = await view.refresh()
            except SourceError as error:
                view.show_failure(str(error))
            except Exception:  # a defect; the page continues
                log.exception("The telemetry could not be shown", extra={"fields": {}})
                view.show_failure("This telemetry cannot be shown; the frontend's log has the details.")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)
