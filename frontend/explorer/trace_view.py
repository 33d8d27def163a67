"""A trace: its waterfall, where its time went, and the attributes of the span that one clicks."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape

import panel as pn
import panel_material_ui as pmui

from frontend.explorer.model import MAX_SPANS, Row, Trace, arrange, duration_text
from frontend.explorer.parts import bar, copy_button, definitions, failure, grafana_link, html
from frontend.explorer.sources import Telemetry
from frontend.explorer.waterfall import CRITICAL, Waterfall, colour

POLL = 0.4  # seconds between two looks at a trace that is still arriving
SETTLED = 3.0  # seconds after its end for which a trace that looks whole is looked at again
ARRIVING = 15.0  # the same for one that misses something
HEIGHT = 560  # pixels; a longer waterfall scrolls
HINT = bar(
    '<span class="soft">Click a span for its attributes. Drag over bars to look closer, double-click to go back.</span>'
)


class TraceView:
    """Shows one trace at a time.

    Args:
        telemetry: where traces come from.
        draw: runs a function in the document's own time.
        show_lines: shows the log lines of a trace or of one of its spans, by its id.
    """

    def __init__(self, telemetry: Telemetry, draw: Callable[..., None], show_lines: Callable[[str], None]) -> None:
        self._telemetry = telemetry
        self._draw_later = draw
        self._trace_id = ""
        self._trace: Trace | None = None
        self._span_id = ""  # of the span that is selected
        self._asked = 0.0
        self._head = html(css_classes=["trace"])
        self._waterfall = Waterfall(self._selected)
        self._plot = pn.Column(
            pn.pane.Bokeh(self._waterfall.layout, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width",
            visible=False,
            css_classes=["waterfall"],
            styles={"max-height": f"{HEIGHT}px", "overflow-y": "auto", "overflow-x": "hidden"},
        )
        self._detail = html(css_classes=["detail"])
        self._lines = pmui.Button(label="Log lines", icon="notes", size="small", variant="outlined", visible=False)
        self._lines.on_click(lambda _event: show_lines(self._span_id or self._trace_id))
        self.panel = pn.Column(self._head, self._plot, self._lines, self._detail, sizing_mode="stretch_width")

    def dark(self, dark: bool) -> None:
        self._waterfall.dark(dark)

    def show(self, trace_id: str, span_id: str = "") -> None:
        """Show a trace, now or as soon as it arrives, with one of its spans selected."""
        self._asked = time.monotonic()
        if trace_id == self._trace_id and self._trace is not None:
            self._select(span_id)
            return
        self._trace_id, self._trace, self._span_id = trace_id, None, span_id
        self._plot.visible = self._lines.visible = False
        self._detail.object = ""
        self._head.object = self._headline(None)

    def say(self, message: str) -> None:
        self._head.object = failure(message)

    async def refresh(self) -> float | None:
        """Fetch and draw; returns the seconds after which to do so again, ``None`` for never."""
        source, trace_id = self._telemetry.traces, self._trace_id
        if not trace_id or source is None:
            return None
        trace = arrange(trace_id, await source.trace(trace_id))
        self._draw_later(self._draw, trace)
        return None if self._over(trace) else POLL

    def _over(self, trace: Trace) -> bool:
        """Whether nothing more of this trace is to be expected."""
        if not trace.rows:
            return time.monotonic() - self._asked > ARRIVING and not self._telemetry.behind
        return time.time() - trace.finish / 1e9 > (ARRIVING if trace.missing else SETTLED)

    def _draw(self, trace: Trace) -> None:
        if trace.trace_id != self._trace_id:
            return
        changed = self._trace is None or len(trace.rows) != len(self._trace.rows)
        self._trace = trace
        self._head.object = self._headline(trace)
        if trace.rows and changed:
            self._waterfall.show(trace)
            self._plot.visible = self._lines.visible = True
            self._select(self._span_id)

    # --- the selected span ---

    def _row(self) -> tuple[int, Row] | None:
        rows = self._trace.rows if self._trace else ()
        return next(((place, row) for place, row in enumerate(rows) if row.span.span_id == self._span_id), None)

    def _select(self, span_id: str) -> None:
        self._span_id = span_id
        found = self._row()
        self._waterfall.select(found[0] if found else None)
        self._draw_detail()

    def _selected(self, place: int | None) -> None:
        """The user clicked a row, or beside all."""
        rows = self._trace.rows if self._trace else ()
        self._span_id = rows[place].span.span_id if place is not None and place < len(rows) else ""
        self._draw_detail()

    def _draw_detail(self) -> None:
        found = self._row()
        self._lines.label = f"Log lines of this {'span' if found else 'trace'}"
        self._detail.object = _detail(found[1]) if found else HINT

    # --- what is said of the trace ---

    def _headline(self, trace: Trace | None) -> str:
        telemetry, trace_id = self._telemetry, self._trace_id
        tools = bar(
            f'<span class="soft">trace</span><code>{trace_id}</code>',
            copy_button(trace_id, "copy id"),
            copy_button(f"/?trace={trace_id}", "copy link", link=True),
            '<span class="end"></span>',
            grafana_link(telemetry.grafana, "tempo", [{"queryType": "traceql", "query": trace_id}]),
            telemetry.badge(telemetry.traces),
        )
        if trace is None or not trace.rows:
            gone = trace is not None and self._over(trace)
            said = "There is no such trace here, or no longer." if gone else "Its spans are still arriving …"
            return f'{tools}<div class="empty" data-arriving="{str(not gone).lower()}">{said}</div>'
        return self._summary(trace) + tools + _services(trace)

    def _summary(self, trace: Trace) -> str:
        root = trace.rows[0].span
        inner = next((row.span.name for row in trace.rows[1:] if row.span.service != root.service), "")
        failed = sum(row.span.failed for row in trace.rows)
        if not trace.missing:
            state = ""
        elif self._over(trace):
            state = f'<span class="wait">incomplete: {escape(trace.missing)} is missing</span>'
        else:
            state = f'<span class="wait" data-arriving="true">still arriving: {escape(trace.missing)} is missing</span>'
        return bar(
            f"<h3>{escape(root.name)}{escape(f' → {inner}') if inner else ''}</h3>",
            f"<b>{duration_text(trace.duration)}</b>",
            f"<span>{len(trace.rows) + trace.hidden} span{'s' if len(trace.rows) > 1 else ''}</span>",
            f'<span class="soft">the first {MAX_SPANS} are shown</span>' if trace.hidden else "",
            f'<span class="bad">✖ {failed} failed</span>' if failed else "",
            state,
            f'<span class="soft">{time.strftime("%H:%M:%S", time.localtime(trace.start / 1e9))}</span>',
        )


def _services(trace: Trace) -> str:
    """Each service's own time, and its share of the critical path."""
    path: dict[str, int] = {}
    for part in trace.critical:
        path[part.span.service] = path.get(part.span.service, 0) + part.finish - part.start
    total = max(1, sum(path.values()))
    return bar(
        *(
            '<span title="Time at work itself, not waiting for a span below; share of the critical path.">'
            f'<span class="dot" style="background: {colour(service)}"></span>{escape(service)} '
            f'<b>{duration_text(own)}</b> <span class="soft">own, '
            f"{100 * path.get(service, 0) / total:.0f} % of the path</span></span>"
            for service, own in sorted(trace.own.items(), key=lambda item: -item[1])
        ),
        f'<span><span class="dot" style="background: {CRITICAL}; height: .3em; vertical-align: middle"></span>'
        '<span class="soft">critical path</span></span>',
    )


def _detail(row: Row) -> str:
    span = row.span
    events = "".join(
        f'<details open><summary>{escape(name)} <span class="soft">after {duration_text(at - span.start)}</span>'
        f"</summary>{definitions(attributes)}</details>"
        for name, at, attributes in span.events
    )
    return (
        bar(
            f'<h3><span class="dot" style="background: {colour(span.service)}"></span>'
            f"{escape(span.service)}: {escape(span.name)}</h3>",
            f"<b>{duration_text(span.duration)}</b>",
            f'<span class="bad">failed: {escape(span.message)}</span>' if span.failed else "",
            f'<span class="soft">span</span><code>{escape(span.span_id)}</code>',
        )
        + definitions(span.attributes)
        + events
    )
