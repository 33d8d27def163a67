"""What the user sees of the telemetry: a trace, log lines, figures, and the list of recent traces."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from html import escape
from typing import Any

import orjson
import pandas as pd
import panel as pn
import panel_material_ui as pmui
from panel.io.state import set_curdoc
from yarl import URL

from frontend.explorer.model import (
    MAX_SPANS,
    LogLine,
    LogQuery,
    SourceError,
    Trace,
    TraceQuery,
    arrange,
    duration_text,
)
from frontend.explorer.sources import Telemetry
from frontend.explorer.waterfall import Waterfall, colour

log = logging.getLogger(__name__)

TRACE, LOGS, SEARCH = range(3)
POLL = 0.4  # seconds between two looks at a trace that is still arriving
FOLLOW = 1.0  # seconds between two looks at log lines and at the list of traces
ARRIVING = 15.0  # seconds after a trace's end in which its last spans may still come
SETTLED = 3.0  # seconds after which a trace that looks whole is taken to be whole
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "unknown")
STYLE = """
:host { --soft: color-mix(in srgb, currentColor 66%, transparent);
        --line: color-mix(in srgb, currentColor 18%, transparent); }
.bar { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; }
.soft { color: var(--soft); }
.source { border: 1px solid var(--line); border-radius: 99px; padding: 1px 10px; font-size: .85rem; white-space: nowrap; }
.bad { color: #e0413a; font-weight: 600; }
.wait { color: #b97a00; font-weight: 600; }
h3 { margin: 0; font-size: 1.05rem; font-weight: 600; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; white-space: pre-wrap; }
a { color: inherit; }
button { font: inherit; font-size: .85em; color: inherit; background: none; border: 1px solid var(--line);
         border-radius: 6px; padding: 1px 8px; cursor: pointer; }
button:hover { border-color: currentColor; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
.empty { color: var(--soft); text-align: center; padding: 36px 8px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 16px; margin: 8px 0 0; font-size: .88rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 6px; font-size: .88rem; }
"""
TABLE_STYLE = """
:host .tabulator { font-size: .84rem; border: none; background: none; }
:host .tabulator .tabulator-header .tabulator-col-title { font-weight: 500; opacity: .7; }
:host .tabulator .tabulator-row { min-height: 0; cursor: pointer; background: none; }
:host .tabulator .tabulator-row:hover { background: color-mix(in srgb, currentColor 9%, transparent); }
:host .tabulator .tabulator-row .tabulator-cell { padding: 4px 8px; min-height: 0; height: auto; }
"""


def _html(object: str = "") -> pn.pane.HTML:
    return pn.pane.HTML(object, stylesheets=[STYLE], sizing_mode="stretch_width", margin=(2, 10))


def _copy(text: str, label: str, *, link: bool = False) -> str:
    """A button that copies a text, or the address of a page of this site."""
    what = "location.origin+b.dataset.copy" if link else "b.dataset.copy"
    script = (
        f"const b=this,t=b.textContent;navigator.clipboard.writeText({what})"
        ".then(()=>{b.textContent='copied';setTimeout(()=>b.textContent=t,1500)})"
    )
    return f'<button type="button" data-copy="{escape(text)}" onclick="{script}">{escape(label)}</button>'


def grafana_link(grafana: URL | None, source: str, query: dict[str, Any], text: str = "Open in Grafana") -> str:
    """A link to the same thing in Grafana's Explore; empty where Grafana does not run."""
    if grafana is None:
        return ""
    pane = {
        "datasource": source,
        "queries": [{"refId": "A", "datasource": {"type": source, "uid": source}, **query}],
        "range": {"from": "now-1h", "to": "now"},
    }
    url = (grafana / "explore").with_query(
        schemaVersion="1", orgId="1", panes=orjson.dumps({"dicelab": pane}).decode()
    )
    return f'<a href="{escape(str(url))}" target="_blank" rel="noopener">{escape(text)} ↗</a>'


def _table(columns: dict[str, int | str], on_click: Callable[[Any], None], height: int) -> pn.widgets.Tabulator:
    """A table of text: what its cells hold is shown as it is."""
    return pn.widgets.Tabulator(
        pd.DataFrame({name: [] for name in columns}, dtype=object),
        show_index=False,
        disabled=True,
        selectable=False,
        sizing_mode="stretch_width",
        height=height,
        layout="fit_columns",
        theme="simple",
        formatters={name: {"type": "plaintext"} for name in columns},
        widths={name: width for name, width in columns.items() if width},
        configuration={"columnDefaults": {"headerSort": False, "tooltip": False}, "placeholder": "Nothing here yet"},
        stylesheets=[TABLE_STYLE],
        on_click=on_click,
    )


class Explorer:
    """The explorer of one browser session.

    Everything it shows is fetched by a task of its own and drawn in a tick of the document's: neither a source that
    is slow nor one that is away holds up the dice.

    Args:
        telemetry: where traces and lines come from.
        dice: the dice there are, to choose from.
        trace_id: a trace to show first.
    """

    def __init__(
        self, telemetry: Telemetry, dice: list[str], trace_id: str
    ) -> None:
        services = telemetry.services
        self._telemetry = telemetry
        self._document = pn.state.curdoc
        self._wake = asyncio.Event()
        self._trace_id = trace_id
        self._trace: Trace | None = None
        self._asked_at = time.monotonic()
        self._selected: str | None = None  # a span's id

        # The trace.
        self._head = _html('<div class="empty">Roll a die: the way of that roll through the services appears here.</div>')
        self._waterfall = Waterfall(self._row_selected)
        self._plot = pn.Column(
            pn.pane.Bokeh(self._waterfall.layout, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width",
            visible=False,
            styles={"max-height": "540px", "overflow-y": "auto", "overflow-x": "hidden"},
        )
        self._detail = _html()
        self._to_lines = pmui.Button(label="Log lines", icon="notes", size="small", variant="outlined", visible=False)
        self._to_lines.on_click(self._lines_clicked)

        # The log lines.
        self._service = pmui.Select(label="Service", options={"all": "", **{name: name for name in services}}, value="", size="small", width=150)
        self._level = pmui.Select(label="Level", options={"all": "", **{name: name for name in LEVELS}}, value="", size="small", width=130)
        self._text = pmui.TextInput(label="Text", value="", size="small", width=190)
        self._of_trace = pmui.TextInput(label="Trace or span id", value="", size="small", width=210)
        self._follow = pmui.Switch(label="Follow", value=True)
        self._log_head = _html()
        self._lines: list[LogLine] = []
        self._log_table = _table({"time": 100, "level": 84, "service": 100, "message": "", "fields": "", "trace": 90}, self._line_clicked, 520)
        self._line = _html()

        # Recent traces.
        self._find_service = pmui.Select(label="Service", options={"any": "", **{name: name for name in services}}, value="", size="small", width=150)
        self._find_die = pmui.Select(label="Die", options={"any": "", **{name: name for name in dice}}, value="", size="small", width=120)
        self._find_status = pmui.Select(label="Status", options={"any": None, "ok": False, "failed": True}, value=None, size="small", width=120)
        self._find_duration = pmui.FloatInput(label="At least, ms", value=0, start=0, size="small", width=130)
        self._search_head = _html()
        self._found: list[str] = []
        self._search_table = _table({"time": 100, "what": "", "die": 90, "services": "", "spans": 70, "took": 90, "status": 80}, self._trace_clicked, 560)

        for control in (self._service, self._level, self._text, self._of_trace, self._follow, self._find_service, self._find_die, self._find_status, self._find_duration):
            control.param.watch(self._changed, "value")
        self._tabs = pmui.Tabs(
            ("Trace", pn.Column(self._head, self._plot, self._detail, self._to_lines, sizing_mode="stretch_width")),
            (
                "Logs",
                pn.Column(
                    pn.FlexBox(self._service, self._level, self._text, self._of_trace, self._follow, align_items="center"),
                    self._log_head,
                    self._log_table,
                    self._line,
                    sizing_mode="stretch_width",
                ),
            ),
            (
                "Recent traces",
                pn.Column(
                    pn.FlexBox(self._find_service, self._find_die, self._find_status, self._find_duration, align_items="center"),
                    self._search_head,
                    self._search_table,
                    sizing_mode="stretch_width",
                ),
            ),
            sizing_mode="stretch_width",
        )
        self._tabs.param.watch(self._changed, "active")
        self._task = asyncio.create_task(self._run())
        pn.state.on_session_destroyed(lambda _context: self._task.cancel())

    def view(self) -> pmui.Paper:
        return pmui.Paper(self._tabs, sizing_mode="stretch_width", sx={"p": 1})

    def dark(self, dark: bool) -> None:
        self._waterfall.dark(dark)

    # --- what the user does ---

    def show_trace(self, trace_id: str) -> None:
        """Show a trace, now or as soon as it arrives."""
        self._trace_id, self._trace, self._selected = trace_id, None, None
        self._asked_at = time.monotonic()
        self._tabs.active = TRACE
        self._plot.visible = False
        self._detail.object = ""
        self._to_lines.visible = False
        self._head.object = self._trace_head(None)
        if pn.state.location is not None:
            pn.state.location.update_query(trace=trace_id)
        self._wake.set()

    def _row_selected(self, place: int | None) -> None:
        if self._trace is None:
            return
        selected = None if place is None or place >= len(self._trace.rows) else self._trace.rows[place].span
        self._selected = selected.span_id if selected else None
        self._detail.object = self._span_detail()
        self._to_lines.label = "Log lines of this span" if selected else "Log lines of this trace"

    def _lines_clicked(self, _event: Any) -> None:
        self._service.value = self._level.value = self._text.value = ""
        self._of_trace.value = self._selected or self._trace_id
        self._tabs.active = LOGS

    def _line_clicked(self, event: Any) -> None:
        if not 0 <= event.row < len(self._lines):
            return
        line = self._lines[event.row]
        if event.column == "trace" and line.trace_id:
            self.show_trace(line.trace_id)
            self._selected = line.span_id
            return
        rows = {"time": line.time, "level": line.level, "service": line.service, "message": line.message, "trace_id": line.trace_id, "span_id": line.span_id, **line.fields}
        self._line.object = _definitions(rows)

    def _trace_clicked(self, event: Any) -> None:
        if 0 <= event.row < len(self._found):
            self.show_trace(self._found[event.row])

    def _changed(self, _event: Any) -> None:
        self._wake.set()

    # --- the task ---

    async def _run(self) -> None:
        refresh = {TRACE: self._refresh_trace, LOGS: self._refresh_logs, SEARCH: self._refresh_search}
        while True:
            self._wake.clear()
            wait: float | None = FOLLOW
            try:
                wait = await refresh[self._tabs.active]()
            except SourceError as error:
                self._draw(self._say, str(error))
            except Exception:  # a defect; the page goes on
                log.exception("The telemetry could not be shown", extra={"fields": {}})
                wait = 5.0
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except asyncio.TimeoutError:
                pass

    def _draw(self, draw: Callable[..., None], *values: Any) -> None:
        """Draw in the document's own time."""

        def drawn() -> None:
            with set_curdoc(self._document):
                try:
                    draw(*values)
                except Exception:
                    log.exception("The telemetry could not be drawn", extra={"fields": {}})

        self._document.add_next_tick_callback(drawn)

    def _say(self, message: str) -> None:
        {TRACE: self._head, LOGS: self._log_head, SEARCH: self._search_head}[self._tabs.active].object = (
            f'<div class="bar"><span class="bad">{escape(message)}</span></div>'
        )

    def _source(self, source: Any, link: str = "") -> str:
        behind = self._telemetry.files.behind if source is self._telemetry.files and self._telemetry.files else 0
        late = f'<span class="soft">reading older files, {behind / 1e6:.0f} MB to go</span>' if behind else ""
        return f'{late}{link}<span class="source" data-source="{source.name}">from {source.name}</span>'

    # --- trace ---

    async def _refresh_trace(self) -> float | None:
        source, trace_id = self._telemetry.traces, self._trace_id
        if not trace_id or source is None:
            return None
        trace = arrange(trace_id, await source.trace(trace_id))
        if trace_id != self._trace_id:
            return 0.0
        known = len(self._trace.rows) if self._trace else 0
        self._draw(self._draw_trace, trace, len(trace.rows) != known)
        if self._over(trace):
            return None
        return POLL

    def _over(self, trace: Trace) -> bool:
        """Whether nothing more of this trace is to be expected."""
        waited = time.monotonic() - self._asked_at
        if not trace.rows:
            return waited > ARRIVING and not (self._telemetry.files and self._telemetry.files.behind)
        age = time.time() - trace.finish / 1e9
        return age > (ARRIVING if trace.missing else SETTLED)

    def _draw_trace(self, trace: Trace, changed: bool) -> None:
        if trace.trace_id != self._trace_id:
            return
        self._trace = trace
        self._head.object = self._trace_head(trace)
        if not trace.rows or not changed:
            return
        place = next((i for i, row in enumerate(trace.rows) if row.span.span_id == self._selected), None)
        self._waterfall.show(trace, place)
        self._plot.visible = self._to_lines.visible = True
        self._row_selected(place)

    def _trace_head(self, trace: Trace | None) -> str:
        assert self._telemetry.traces is not None
        link = grafana_link(self._telemetry.grafana, "tempo", {"queryType": "traceql", "query": self._trace_id})
        tools = (
            f'<span class="soft">trace</span> <code>{self._trace_id}</code>{_copy(self._trace_id, "copy id")}'
            f"{_copy(f'/?trace={self._trace_id}', 'copy link', link=True)}{self._source(self._telemetry.traces, link)}"
        )
        if trace is None or not trace.rows:
            over = trace is not None and self._over(trace)
            said = "There is no such trace here, or no longer." if over else "Its spans are still arriving …"
            return f'<div class="bar">{tools}</div><div class="empty">{said}</div>'
        root = trace.rows[0].span
        target = next((str(row.span.attributes["http.route"]) for row in trace.rows if "http.route" in row.span.attributes), "")
        title = f"{root.service}: {root.name}" + (f" → {target}" if target and target not in root.name else "")
        failed = sum(row.span.failed for row in trace.rows)
        state = f'<span class="bad">{failed} spans failed</span>' if failed else "<span>no span failed</span>"
        if trace.missing:
            state += (
                f'<span class="soft">incomplete: {escape(trace.missing)} is missing</span>'
                if self._over(trace)
                else f'<span class="wait">still arriving: {escape(trace.missing)} is missing</span>'
            )
        when = time.strftime("%H:%M:%S", time.localtime(trace.start / 1e9))
        path: dict[str, int] = {}
        for part in trace.critical:
            path[part.span.service] = path.get(part.span.service, 0) + part.finish - part.start
        services = "".join(
            f'<span title="time in which it was at work itself, and its share of the critical path">'
            f'<span class="dot" style="background: {colour(name)}"></span>{escape(name)} '
            f'<b>{duration_text(own)}</b> <span class="soft">own · {100 * path.get(name, 0) / max(1, trace.duration):.0f} % of the path</span></span>'
            for name, own in sorted(trace.own.items(), key=lambda item: -item[1])
        )
        more = f'<span class="soft">the first {MAX_SPANS} are shown</span>' if trace.hidden else ""
        return (
            f'<div class="bar"><h3>{escape(title)}</h3><b>{duration_text(trace.duration)}</b>'
            f"<span>{len(trace.rows)} spans</span>{more}{state}<span class=\"soft\">{when}</span></div>"
            f'<div class="bar">{tools}</div><div class="bar">{services}'
            f'<span><span class="dot" style="background: #f2a900; height: .3em"></span><span class="soft">critical path</span></span></div>'
        )

    def _span_detail(self) -> str:
        if self._trace is None:
            return ""
        row = next((row for row in self._trace.rows if row.span.span_id == self._selected), None)
        if row is None:
            return '<span class="soft">Click a span for its attributes. Drag over bars to look closer, double-click to go back.</span>'
        span = row.span
        failed = f'<span class="bad">failed: {escape(span.message)}</span>' if span.failed else ""
        events = "".join(
            f"<details open><summary>{escape(name)} <span class=\"soft\">after {duration_text(at - span.start)}</span></summary>"
            f"{_definitions(attributes)}</details>"
            for name, at, attributes in span.events
        )
        return (
            f'<div class="bar"><h3><span class="dot" style="background: {colour(span.service)}"></span>'
            f"{escape(span.service)}: {escape(span.name)}</h3><b>{duration_text(span.duration)}</b>{failed}"
            f'<span class="soft">span</span><code>{escape(span.span_id)}</code></div>{_definitions(span.attributes)}{events}'
        )

    # --- logs ---

    async def _refresh_logs(self) -> float | None:
        source = self._telemetry.logs
        if source is None:
            return None
        wanted = self._of_trace.value.strip().lower()
        query = LogQuery(
            service=self._service.value,
            level=self._level.value,
            text=self._text.value,
            trace_id=wanted if len(wanted) != 16 else "",
            span_id=wanted if len(wanted) == 16 else "",
        )
        lines = await source.lines(query)
        if wanted:  # a story is told from its beginning
            lines.reverse()
        if not self._wake.is_set():
            self._draw(self._draw_logs, lines, query)
        return FOLLOW if self._follow.value else None

    def _draw_logs(self, lines: list[LogLine], query: LogQuery) -> None:
        source = self._telemetry.logs
        self._log_head.object = f'<div class="bar"><span>{len(lines)} lines</span>{self._source(source)}</div>'
        if lines == self._lines and lines:
            return
        self._lines = lines
        self._log_table.value = pd.DataFrame(
            {
                "time": [line.time[11:23] for line in lines],
                "level": [line.level for line in lines],
                "service": [line.service for line in lines],
                "message": [line.message for line in lines],
                "fields": [" ".join(f"{name}={value}" for name, value in line.fields.items()) for line in lines],
                "trace": [line.trace_id[:8] for line in lines],
            },
            dtype=object,
        )

    # --- recent traces ---

    async def _refresh_search(self) -> float | None:
        source = self._telemetry.traces
        if source is None:
            return None
        found = await source.traces(
            TraceQuery(
                self._find_service.value, self._find_die.value, self._find_status.value, self._find_duration.value or 0.0
            )
        )
        if not self._wake.is_set():
            self._draw(self._draw_search, found)
        return FOLLOW

    def _draw_search(self, found: list[Any]) -> None:
        self._search_head.object = f'<div class="bar"><span>{len(found)} traces</span>{self._source(self._telemetry.traces)}</div>'
        ids = [trace.trace_id for trace in found]
        if ids == self._found and ids:
            return
        self._found = ids
        self._search_table.value = pd.DataFrame(
            {
                "time": [time.strftime("%H:%M:%S", time.localtime(trace.start / 1e9)) for trace in found],
                "what": [trace.name for trace in found],
                "die": [trace.die for trace in found],
                "services": [", ".join(trace.services) for trace in found],
                "spans": [trace.spans if trace.spans is not None else "" for trace in found],
                "took": [duration_text(trace.duration) for trace in found],
                "status": ["failed" if trace.failed else "ok" for trace in found],
            },
            dtype=object,
        )


def _definitions(values: Any) -> str:
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd><code>{escape(str(value))}</code></dd>" for name, value in values.items()
    )
    return f"<dl>{rows}</dl>"
