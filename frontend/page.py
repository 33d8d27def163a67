"""The page: choose a die, roll it, and see its result, duration and trace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import panel as pn
from markupsafe import Markup
from panel.io.resources import parse_template

from frontend import drawing
from frontend.backend import Backend
from frontend.browser.bridge import Bridge
from frontend.browser.clock import Clock
from frontend.browser.render import render
from frontend.explorer.explorer import Explorer, parse_query
from frontend.explorer.sources import Telemetry
from frontend.panel_server import user_of
from frontend.rolls import History, Roll
from frontend.telemetry import ROOT_SPAN
from frontend.usage import Sessions, User
from otel import traces
from web.problems import Problem

log = logging.getLogger(__name__)

ADVICE = {
    "roll-failed": "Some of its rolls fail by design. Roll again.",
    "unavailable": "A service is down or too busy. Wait a moment and roll again.",
    "timed-out": "A service took too long. Roll again.",
    "unknown-die": "Reload the page for the list of dice.",
}
BROWSER = Path(__file__).parent / "browser"
TEMPLATE = Path(__file__).parent / "templates" / "page.html"
SCRIPTS = ("live.js", "tree.js", "chart.js")
REGIONS = ("range", "roll-form", "roll-state", "alert", "result", "history")

pn.extension(notifications=False)


@cache
def _script() -> str:
    """The script of the page: each file becomes a block with a scope of its own."""
    parts = "\n".join(f"{{\n{(BROWSER / name).read_text()}}}" for name in SCRIPTS)
    return f'"use strict"\n{parts}'


@cache
def _template() -> Any:
    """Panel's template, compiled once."""
    return parse_template(TEMPLATE.read_text())


@cache
def _style() -> str:
    return (BROWSER / "page.css").read_text()


class RollPage:
    """One browser session's page.

    Args:
        backend: makes the rolls.
        async_rolls: whether batches are offered.
        max_rolls: the maximum number of rolls in a batch.
        sessions: the signed-in users, or ``None`` without sign-in.
        user: the signed-in user, or ``None``.
        telemetry: the explorer's sources.
    """

    def __init__(
        self,
        backend: Backend,
        async_rolls: bool,
        max_rolls: int,
        sessions: Sessions | None,
        user: User | None,
        telemetry: Telemetry,
    ) -> None:
        self._backend = backend
        self._user = user
        self._sessions = sessions
        self._async_rolls = async_rolls
        self._max_rolls = max_rolls
        self._clock = Clock()
        self._bridge = Bridge()
        self._explorer = Explorer(telemetry, backend.dice, backend.specification, self._bridge, self._clock)
        self._history = History(user.session_id if user else "")
        self._die = ""
        self._many = False
        self._times = "10"  # as typed
        self._roll: Roll | None = None  # the last one
        self._task: asyncio.Task[None] | None = None  # the roll in progress
        self._loading: asyncio.Task[None] | None = None  # of the list of dice
        handlers: dict[str, Callable[[Any], None]] = {
            "open": self._opened,
            "ping": lambda _value: self._bridge.send(pong=True),
            "die": self._die_chosen,
            "many": self._many_chosen,
            "times": self._times_typed,
            "roll": self._roll_asked,
            "cancel": self._cancel,
            "load-dice": self._load_dice,
        }
        for event, handler in handlers.items():
            self._bridge.on(event, handler)
        self._show_dice()
        self._draw_result()
        self._draw_history()
        pn.state.on_session_destroyed(lambda _context: self._explorer.stop())

    def view(self) -> pn.Template:
        views = self._explorer.views
        names = [*REGIONS, *(name for view in views for name in view.regions)]
        body = render(
            "templates/body.html",
            regions={name: Markup(self._bridge.region(name)) for name in names},
            views=views,
            username=self._user.username if self._user else None,
        )
        self._bridge.page_sent()
        template = pn.Template(_template())
        template.add_variable("page", body)
        template.add_variable("style", _style())
        template.add_variable("script", _script())
        template.add_panel("bridge", self._bridge)
        return template

    # --- the browser ---

    def _opened(self, value: Any) -> None:
        """Apply what the browser sends once it is connected: its address and its stored rolls."""
        if not isinstance(value, dict):
            return
        self._clock.set_zone(value.get("zone"), value.get("offset"))
        if not len(self._history):
            self._history.restore(value.get("rolls"))
            self._roll = next(iter(self._history), None)
        self._draw_result()
        self._draw_history()
        self._explorer.start(parse_query(value.get("query")))

    # --- the dice ---

    def _show_dice(self) -> None:
        dice = self._backend.dice
        if self._die not in dice:
            self._die = "fair" if "fair" in dice else next(iter(dice), "")
        if not dice:
            self._show_alert("The list of dice could not be loaded: the die-service does not answer.")
        self._draw_form()

    def _load_dice(self, _value: Any) -> None:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._fetch_dice())

    async def _fetch_dice(self) -> None:
        with traces.root_span(ROOT_SPAN):
            try:
                self._explorer.dice_known(await self._backend.fetch_dice())
                self._show_alert("")
            except Problem as problem:
                traces.record_failure(problem.cause or problem)
        self._show_dice()

    # --- the form ---

    def _die_chosen(self, value: Any) -> None:
        if value in self._backend.dice:
            self._die = value

    def _many_chosen(self, value: Any) -> None:
        self._many = bool(value)
        self._draw_form()

    def _times_typed(self, value: Any) -> None:
        self._times = str(value)[:20]
        self._draw_form()

    def _invalid(self) -> str:
        """What is wrong with the number of rolls; empty if it is valid."""
        if not self._many or (self._times.isdecimal() and 1 <= int(self._times) <= self._max_rolls):
            return ""
        return f"The number of rolls must be a whole number from 1 to {self._max_rolls}."

    def _draw_form(self) -> None:
        html = render(
            "templates/roll_form.html",
            dice=self._backend.dice,
            die=self._die,
            async_rolls=self._async_rolls,
            many=self._many,
            times=self._times,
            max_rolls=self._max_rolls,
            invalid=self._invalid(),
        )
        self._bridge.show("roll-form", html)

    # --- rolling ---

    def _roll_asked(self, form: Any) -> None:
        if self._task is not None or not isinstance(form, dict):
            return  # one roll at a time
        self._die, self._many = str(form.get("die", "")), self._async_rolls and bool(form.get("many"))
        if self._many and "times" in form:  # the field is missing while it is still disabled
            self._times = str(form["times"])[:20]
        self._draw_form()
        self._show_alert("")
        if self._die not in self._backend.dice:
            self._show_alert("Choose a die first.")
        elif not self._invalid():
            if self._user is not None and self._sessions is not None and self._sessions.ended(self._user):
                self._show_alert("You have signed out. Reload the page to sign in again.")
            else:
                self._task = asyncio.create_task(self._roll_once(self._die, int(self._times) if self._many else None))
                self._draw_result()

    def _cancel(self, _value: Any) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _roll_once(self, die: str, times: int | None) -> None:
        started, began = time.time_ns() // 1_000_000, perf_counter()
        status, message, advice = 200, "", ""
        faces: list[int | None] = []
        roll: Roll | None = None
        try:
            with traces.root_span(ROOT_SPAN):
                trace_id, _ = traces.current_ids()
                try:
                    response = await self._backend.roll_from_page(die, times, self._user)
                    faces = [response["roll"]] if times is None else list(response["rolls"])
                except Problem as problem:
                    status, message, advice = problem.status, problem.detail, ADVICE.get(problem.kind, "")
                    faces = list(problem.members.get("rolls", [None] if problem.kind == "roll-failed" else []))
                    if problem.status >= 500:
                        traces.record_failure(problem.cause or problem)
            roll = Roll(started, die, status, (perf_counter() - began) * 1000, trace_id, tuple(faces), message)
        except asyncio.CancelledError:
            message = "The roll was cancelled."
        except Exception:  # a defect; report it to the user
            log.exception("The roll could not be shown", extra={"fields": {}})
            message = "Something went wrong here; the frontend's log has the details."
        self._task = None
        if roll is not None:
            self._roll = roll
            self._history.add(roll)
            self._bridge.send(rolls=self._history.stored())
            self._draw_history()
        self._draw_result()
        self._show_alert(f"{message} {advice}".strip())
        if roll is not None and roll.trace_id:
            self._explorer.rolled(roll.trace_id)

    def _draw_result(self) -> None:
        rolling = self._task is not None
        what = f"{self._times} {self._die} dice" if self._many else f"the {self._die} die"
        self._bridge.show("roll-state", render("templates/roll_state.html", rolling=what if rolling else ""))
        shown = None if rolling else self._roll
        self._bridge.show("result", render("templates/result.html", roll=shown, rolling=rolling, die=drawing.die))

    def _draw_history(self) -> None:
        self._bridge.show("history", render("templates/history.html", rolls=self._history, clock=self._clock))

    def _show_alert(self, message: str) -> None:
        self._bridge.show("alert", render("templates/alert.html", message=message))


def page_function(
    backend: Backend, async_rolls: bool, max_rolls: int, sessions: Sessions | None, telemetry: Telemetry
) -> Any:
    """The function that Panel calls for each browser session."""

    def page() -> Any:
        try:
            user = user_of(pn.state.headers) if sessions else None
            return RollPage(backend, async_rolls, max_rolls, sessions, user, telemetry).view()
        except Exception:  # Panel would show the traceback to the user
            log.exception("The page could not be made", extra={"fields": {}})
            return pn.pane.HTML('<p role="alert">The page could not be made; the log has the details.</p>')

    return page
