"""A trace as a waterfall: a row a span, its name on the left, its bar on a time axis that all share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bokeh.events import DoubleTap
from bokeh.layouts import row
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    HoverTool,
    Range1d,
    TapTool,
)
from bokeh.plotting import figure

from frontend.explorer.model import Trace, duration_text
from frontend.explorer.parts import BAD, change

ROW = 24  # pixels
AXIS = 30  # pixels above the first row
INDENT = 13  # pixels a level
MAX_DEPTH = 14  # deeper rows are not indented further
# Apart in hue and in lightness, readable on a light page and on a dark one.
COLOURS = {"frontend": "#3d9a5f", "dice-roller": "#2f7fd1", "die-service": "#a05fc4"}
OTHER_COLOURS = ("#c98a1b", "#1f9c9c", "#b0563c", "#6f7f8c")
INK, LIGHT_INK = "#1d2b36", "#e3eaf0"
CRITICAL = "#f2a900"
# Values stand in place of @names as text; Bokeh would take them for markup only if it were told {safe}.
TOOLTIP = """
<div style="color: #1d2b36; max-width: 30em; white-space: normal; overflow-wrap: anywhere">
  <b>@name</b> · @service<br>@took, from @offset <span style="color: #e0413a">@error</span>
  <div style="font-family: ui-monospace, monospace; font-size: 12px; margin-top: 2px">@sql</div>
</div>
"""
COLUMNS = (
    "y", "name", "label", "indent", "service", "colour", "text_colour", "left", "right", "took", "took_x", "took_align",
    "took_indent", "took_colour", "offset", "error", "sql", "outline", "outline_width",
)  # fmt: skip


def colour(service: str) -> str:
    """A service's colour, the same in every view."""
    return COLOURS.get(service) or OTHER_COLOURS[sum(service.encode()) % len(OTHER_COLOURS)]


class Waterfall:
    """The plot of one trace at a time.

    Args:
        on_select: called with the place of the row that the user clicked, or ``None``.
    """

    def __init__(self, on_select: Callable[[int | None], None]) -> None:
        self._trace: Trace | None = None
        self._ink = INK
        self._source = ColumnDataSource({name: [] for name in COLUMNS})
        self._critical = ColumnDataSource({"y": [], "left": [], "right": []})
        self._y = Range1d(0, 1)
        self._x = Range1d(0, 1)
        names = self._figure("names", Range1d(0, 1), min_border_right=0, styles={"flex": "0 0 32%"})
        bars = self._figure("bars", self._x, min_border_right=14)
        bars.add_tools(BoxZoomTool(dimensions="width"))
        bars.js_on_event(DoubleTap, CustomJS(args={"plot": bars}, code="plot.reset.emit()"))
        names.xaxis.visible = False
        names.xgrid.visible = False
        # Milliseconds below a second and a half, seconds above.
        bars.xaxis.formatter = CustomJSTickFormatter(
            code="return tick >= 1500 ? (tick / 1000).toFixed(2) + ' s' : +tick.toPrecision(4) + ' ms'"
        )
        bars.xaxis.ticker.desired_num_ticks = 6
        names.hbar("y", left=0, right=0.011, height=0.66, color="colour", source=self._source)
        names.text(
            0, "y", text="label", x_offset="indent", text_baseline="middle", text_font_size="13px",
            text_color="text_colour", source=self._source,
        )  # fmt: skip
        bars.hbar(
            "y", left="left", right="right", height=0.56, fill_color="colour", line_color="outline",
            line_width="outline_width", border_radius=2, source=self._source,
        )  # fmt: skip
        bars.hbar("y", left="left", right="right", height=0.16, color=CRITICAL, line_width=1, source=self._critical)
        bars.text(
            "took_x", "y", text="took", text_align="took_align", x_offset="took_indent", text_baseline="middle",
            text_font_size="11px", text_color="took_colour", text_alpha=0.9, source=self._source,
        )  # fmt: skip
        self._names, self._bars = names, bars
        for drawn in (*names.renderers[1:], *bars.renderers[1:]):
            drawn.nonselection_glyph = None  # the band shows what is selected; the rest stays as it is
        self.layout = row(names, bars, sizing_mode="stretch_width", spacing=0)
        self._source.selected.on_change("indices", lambda _attribute, _old, new: on_select(new[0] if new else None))

    def _figure(self, name: str, x_range: Range1d, **options: Any) -> Any:
        plot = figure(
            name=name, x_range=x_range, y_range=self._y, tools="", toolbar_location=None, x_axis_location="above",
            sizing_mode="stretch_width", frame_height=ROW, min_border_top=AXIS, min_border_bottom=6, min_border_left=3,
            background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None, **options,
        )  # fmt: skip
        plot.yaxis.visible = False
        plot.ygrid.visible = False
        # A band over the whole row: what is pointed at and clicked.
        band = plot.hbar(
            "y", left=-1e9, right=1e9, height=1, fill_color="#7f93a3", fill_alpha=0, line_color=None,
            selection_fill_alpha=0.25, nonselection_fill_alpha=0, hover_fill_alpha=0.12, source=self._source,
        )  # fmt: skip
        plot.add_tools(
            HoverTool(renderers=[band], tooltips=TOOLTIP, point_policy="follow_mouse", attachment="below"),
            TapTool(renderers=[band], mode="replace"),
        )
        return plot

    def show(self, trace: Trace) -> None:
        self._trace = trace
        count = max(1, len(trace.rows))
        total = max(trace.duration, 1) / 1e6
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        places = {}
        for place, entry in enumerate(trace.rows):
            span = entry.span
            places[span.span_id] = place
            left, right = (span.start - trace.start) / 1e6, (span.finish - trace.start) / 1e6
            beyond = right > 0.86 * total
            inside = beyond and left < 0.14 * total
            values = {
                "y": place + 0.5,
                "name": span.name,
                "label": f"{'✖ ' if span.failed else ''}{span.name}",
                "indent": 10 + INDENT * min(entry.depth, MAX_DEPTH),
                "service": span.service,
                "colour": colour(span.service),
                "text_colour": BAD if span.failed else self._ink,
                "left": left,
                "right": right,
                "took": duration_text(span.duration),
                # Beside the bar, on the side where there is room.
                "took_x": right if not beyond else left,
                "took_align": "left" if not beyond or inside else "right",
                "took_indent": 5 if not beyond or inside else -5,
                "took_colour": "#ffffff" if inside else self._ink,
                "offset": duration_text(span.start - trace.start),
                "error": ("failed: " + span.message) if span.failed else "",
                "sql": str(span.attributes.get("db.statement", "")),
                "outline": BAD if span.failed else colour(span.service),
                "outline_width": 2 if span.failed else 1,
            }
            for name, value in values.items():
                columns[name].append(value)
        change(self._source, data=columns)
        parts = [part for part in trace.critical if part.span.span_id in places]
        critical = {
            "y": [places[part.span.span_id] + 0.5 + 0.36 for part in parts],
            "left": [(part.start - trace.start) / 1e6 for part in parts],
            "right": [(part.finish - trace.start) / 1e6 for part in parts],
        }
        change(self._critical, data=critical)
        for plot in (self._names, self._bars):
            change(plot, frame_height=ROW * count, height=ROW * count + AXIS + 6)
        change(self._y, start=count, end=0)
        change(self._x, start=-0.005 * total, end=1.02 * total, reset_start=-0.005 * total, reset_end=1.02 * total)

    def select(self, place: int | None) -> None:
        """Mark a row as the selected one."""
        change(self._source.selected, indices=[] if place is None else [place])

    def dark(self, dark: bool) -> None:
        """Write in light letters, for a dark page, or in dark ones."""
        self._ink = LIGHT_INK if dark else INK
        if self._trace is not None:
            self.show(self._trace)
