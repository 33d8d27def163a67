"""The page: choose a die, roll it, see what came up, how long it took and which trace it left."""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from html import escape
from time import perf_counter
from typing import Any

import panel as pn
import panel_material_ui as pmui
from bokeh.util.warnings import BokehUserWarning

from frontend import drawing
from frontend.backend import Backend
from frontend.drawing import Roll
from frontend.explorer.explorer import Explorer
from frontend.explorer.model import TRACE_ID
from frontend.explorer.parts import TextTable
from frontend.explorer.sources import Telemetry
from frontend.panel_server import TRACE, user_of
from frontend.telemetry import ROOT_SPAN
from frontend.usage import Sessions, User
from otel import tracing
from web.problems import Problem

log = logging.getLogger(__name__)

HISTORY = 100  # rolls a session remembers
HISTORY_COLUMNS = {"time": 76, "die": 72, "result": None, "took": 76, "trace": 80}
ADVICE = {
    "roll-failed": "Risky dice fail now and then, by design. Roll again.",
    "unavailable": "A service is down or too busy. Wait a moment and roll again.",
    "timed-out": "A service took too long. Roll again.",
    "unknown-die": "Reload the page for the list of dice.",
}
THEME = {
    "light": {"palette": {"background": {"default": "#f0f3f6"}}},
    "dark": {"palette": {"background": {"default": "#10171d", "paper": "#1b242c"}}},
}
HEADER_STYLE = """
nav { display: flex; gap: 12px; align-items: center; justify-content: flex-end; color: #fff; }
form { margin: 0; }
button { color: inherit; font: inherit; background: none; border: 1px solid currentColor; border-radius: 6px;
         padding: 2px 10px; cursor: pointer; white-space: nowrap; }
button:focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }
.who { max-width: 9em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""
FOOTER = """<footer>The same by <a href="/docs">API</a> · <a href="/metrics">metrics</a> of this service</footer>"""
FOOTER_STYLE = "footer { text-align: center; font-size: .9rem; } a { color: inherit; }"

pn.extension("tabulator", notifications=False)
# The page's theme hands tables' style sheets back to us, who have them.
warnings.filterwarnings("ignore", "reference already known", BokehUserWarning)


class ColourScheme(pn.custom.JSComponent):  # type: ignore[misc]
    """Makes the page follow the system's choice of light or dark; shows nothing itself.

    In the browser, because only it knows the choice, and on the page's model, because that is what the
    page's own switch sets.
    """

    _esm = """
    export function render({model, view}) {
      const query = window.matchMedia("(prefers-color-scheme: dark)")
      const follow = () => {
        for (const root of view.model.document.roots())
          if (root.class_name === "Page") root.data.dark_theme = query.matches
      }
      query.addEventListener("change", follow)
      setTimeout(follow, 0)
      return document.createElement("span")
    }
    """


class RollPage:
    """One browser session's page.

    Args:
        backend: the way to roll.
        async_rolls: whether many rolls at once are offered.
        max_rolls: how many of them at the most.
        sessions: who may be signed in, where that is asked for.
        user: who is.
        explorer: shows the trace of each roll.
    """

    def __init__(
        self,
        backend: Backend,
        async_rolls: bool,
        max_rolls: int,
        sessions: Sessions | None,
        user: User | None,
        explorer: Explorer,
    ) -> None:
        self._explorer = explorer
        self._backend = backend
        self._user = user
        self._sessions = sessions
        self._max_rolls = max_rolls
        self._rolling = False
        self._rolls: deque[Roll] = deque(maxlen=HISTORY)
        self._die = pmui.RadioButtonGroup(label="Die", options=[], sizing_mode="stretch_width")
        self._use_async = pmui.Checkbox(label="Use async rolling", value=False)
        self._times = pmui.IntInput(
            label="Number of rolls", value=10, start=1, end=max_rolls, disabled=True, sizing_mode="stretch_width"
        )
        self._async_controls = [self._use_async, self._times] if async_rolls else []
        self._button = pmui.Button(
            label="Roll", icon="casino", variant="contained", size="large", sizing_mode="stretch_width"
        )
        self._progress = pmui.LinearProgress(sizing_mode="stretch_width", visible=False)
        self._alert = pmui.Alert(object="", severity="error", sizing_mode="stretch_width", visible=False)
        self._reload = pmui.Button(label="Load the dice again", variant="outlined", visible=False)
        self._result = pn.pane.HTML(drawing.result(None), stylesheets=[drawing.STYLE], sizing_mode="stretch_width")
        self._history = TextTable(HISTORY_COLUMNS, self._row_clicked, 260, "rolls")
        self._use_async.param.watch(self._async_toggled, "value")
        self._button.on_click(self._roll)
        self._reload.on_click(self._load_dice)
        self._show_dice(backend.dice)

    def view(self) -> pmui.Page:
        controls = pmui.Paper(
            pmui.Column(
                pmui.Typography("Roll a die", variant="h6"),
                self._die,
                *self._async_controls,
                self._button,
                self._reload,
                self._progress,
                sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
            sx={"p": 2},
        )
        outcome = pmui.Paper(
            pmui.Column(self._alert, self._result, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
            sx={"p": 2},
        )
        history = pmui.Paper(
            pmui.Column(
                pmui.Typography("This session's rolls", variant="h6"), self._history.panel, sizing_mode="stretch_width"
            ),
            sizing_mode="stretch_width",
            sx={"p": 2},
        )
        footer = pn.pane.HTML(FOOTER, stylesheets=[FOOTER_STYLE], sizing_mode="stretch_width")
        page = pmui.Page(
            title="Dice Lab",
            busy_indicator=None,  # it shows whether any session is busy, not this one
            header=self._header(),
            main=[
                pmui.Grid(
                    pmui.Grid(
                        pmui.Column(controls, outcome, history, sizing_mode="stretch_width", sx={"gap": 2}),
                        size={"xs": 12, "lg": 4},
                    ),
                    pmui.Grid(self._explorer.view(), size={"xs": 12, "lg": 8}),
                    pmui.Grid(footer, ColourScheme(width=0, height=0, margin=0), size=12),
                    container=True,
                    spacing=2,
                    sizing_mode="stretch_width",
                    sx={"mt": 2, "px": {"xs": 1, "md": 0}},
                )
            ],
            main_width=1500,
            theme_toggle=True,
            theme_config=THEME,
        )
        page.param.watch(lambda event: self._explorer.dark(event.new), "dark_theme")
        return page

    def _header(self) -> list[Any]:
        if self._user is None:
            return []
        return [
            pn.pane.HTML(
                f'<nav><span class="who" title="{escape(self._user.username)}">{escape(self._user.username)}</span>'
                '<form method="post" action="/sign-out"><button>Sign out</button></form></nav>',
                stylesheets=[HEADER_STYLE],
                sizing_mode="stretch_width",
            )
        ]

    def _show_dice(self, dice: list[str]) -> None:
        self._die.options = dice
        if dice:
            self._die.value = "fair" if "fair" in dice else dice[0]
        else:
            self._complain("The list of dice could not be loaded: the die-service does not answer.")
        self._button.disabled = not dice
        self._reload.visible = not dice

    async def _load_dice(self, _event: Any) -> None:
        self._reload.loading = True
        try:
            with tracing.root_span(ROOT_SPAN):
                try:
                    dice = await self._backend.fetch_dice()
                except Problem as problem:
                    tracing.record_failure(problem.cause or problem)
                    dice = []
        finally:
            self._reload.loading = False
        if dice:
            self._alert.visible = False
        self._show_dice(dice)

    def _async_toggled(self, event: Any) -> None:
        self._times.disabled = not event.new

    async def _roll(self, _event: Any) -> None:
        # Not the button's own `disabled`: switched on and off within some 50 ms, the browser's side of it now
        # and then reports the older state back, and the button stays off for good.
        if self._rolling:
            return  # one roll at a time
        self._rolling = self._progress.visible = True
        try:
            await self._roll_once()
        except Exception:  # a defect; the user must still hear of it
            log.exception("The roll could not be shown", extra={"fields": {}})
            self._complain("Something went wrong here; the frontend's log has the details.")
        finally:
            self._rolling = self._progress.visible = False

    async def _roll_once(self) -> None:
        self._alert.visible = False
        # What a widget holds comes from the browser, whatever its limits say.
        die = self._die.value
        if die not in self._backend.dice:
            return self._complain("Choose a die first.")
        times: int | None = None
        if self._async_controls and self._use_async.value:
            times = self._times.value
            if not (isinstance(times, int) and 1 <= times <= self._max_rolls):
                return self._complain(f"The number of rolls must be a whole number from 1 to {self._max_rolls}.")
        if self._user is not None and self._sessions is not None and self._sessions.ended(self._user):
            return self._complain("You have signed out. Reload the page to sign in again.")
        started = perf_counter()
        status, message, advice = 200, "", ""
        faces: list[int | None] = []
        with tracing.root_span(ROOT_SPAN):
            trace_id = tracing.current_trace_id()
            try:
                answer = await self._backend.roll_from_page(die, times, self._user)
                faces = [answer["roll"]] if times is None else list(answer["rolls"])
            except Problem as problem:
                status, message, advice = problem.status, problem.detail, ADVICE.get(problem.kind, "")
                faces = list(problem.members.get("rolls", [None] if problem.kind == "roll-failed" else []))
                if problem.status >= 500:
                    tracing.record_failure(problem.cause or problem)
        roll = Roll(
            time=time.strftime("%H:%M:%S"),
            die=die,
            status=status,
            milliseconds=(perf_counter() - started) * 1000,
            trace_id=trace_id,
            faces=tuple(faces),
            message=message,
        )
        self._rolls.appendleft(roll)
        self._result.object = drawing.result(roll)
        self._history.show(
            [
                (roll.time, roll.die, drawing.outcome(roll), f"{roll.milliseconds:.0f} ms", (roll.trace_id or "")[:8])
                for roll in self._rolls
            ],
        )
        if roll.failed:
            self._complain(f"{message} {advice}".strip())
        if trace_id:
            self._explorer.show_trace(trace_id)

    def _row_clicked(self, event: Any) -> None:
        trace_id = self._rolls[event.row].trace_id if 0 <= event.row < len(self._rolls) else None
        if trace_id:
            self._explorer.show_trace(trace_id)

    def _complain(self, message: str) -> None:
        self._alert.object = escape(message, quote=False)
        self._alert.visible = True


def page_function(
    backend: Backend, async_rolls: bool, max_rolls: int, sessions: Sessions | None, telemetry: Telemetry
) -> Any:
    """What Panel calls for each browser session."""

    def page() -> pmui.Page:
        try:
            user = user_of(pn.state.headers) if sessions else None
            trace_id = pn.state.session_args.get(TRACE, [b""])[0].decode(errors="replace")
            explorer = Explorer(
                telemetry, backend.dice, backend.promise, trace_id if TRACE_ID.fullmatch(trace_id) else ""
            )
            return RollPage(backend, async_rolls, max_rolls, sessions, user, explorer).view()
        except Exception:  # Panel would show the traceback to the user
            log.exception("The page could not be made", extra={"fields": {}})
            return pmui.Page(
                title="Dice Lab", main=[pmui.Alert(object="The page could not be made.", severity="error")]
            )

    return page
