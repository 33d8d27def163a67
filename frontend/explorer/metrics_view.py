"""Figures as charts: requests, errors, latency, faces against what the die promises, rolls and connections in use."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui
from bokeh.models import ColumnDataSource, DatetimeTickFormatter, FactorRange, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from frontend.explorer.metrics import (
    ERROR_QUERY,
    INTERVAL,
    PERCENTILES,
    RATE_QUERY,
    Figures,
    latency_query,
)
from frontend.explorer.model import duration_text
from frontend.explorer.parts import bar, change, failure, grafana_link, html
from frontend.explorer.sources import Telemetry
from frontend.explorer.waterfall import colour

HEIGHT = 220  # pixels of a chart
LABELS = {f"p{percentile * 100:g}": percentile for percentile in PERCENTILES}
# What a die is: its faces, and the share of its rolls that fail.
Promise = tuple[Sequence[int], float]
OBSERVED, PROMISED = "#2f7fd1", "#f2a900"


class MetricsView:
    """Shows the figures of the last minutes.

    Args:
        telemetry: where they come from.
        promise: asks what a die promises; ``None`` when that cannot be had.
        draw: runs a function in the document's own time.
        changed: called when the user asks for something else.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        dice: list[str],
        promise: Callable[[str], Awaitable[Promise | None]],
        draw: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        self._telemetry = telemetry
        self._promise = promise
        self._draw_later = draw
        self._head = html(css_classes=["figures"])
        self._percentile = pmui.Select(label="Latency", options=list(LABELS), value="p95", size="small", width=110)
        self._die = pmui.Select(
            label="Faces of", options=dice, value=dice[0] if dice else None, size="small", width=140
        )
        if "fair" in dice:
            self._die.value = "fair"
        for control in (self._percentile, self._die):
            control.param.watch(lambda _event: changed(), "value")
        names = telemetry.services
        self._rate = Lines("Requests a second", [(name, colour(name)) for name in names])
        self._errors = Lines("Failed requests (5xx) a second", [(name, colour(name)) for name in names])
        self._latency = Lines("Latency, seconds", [(name, colour(name)) for name in names])
        self._use = Lines(
            "In use",
            [("rolls of batches", "#2f7fd1"), ("connections", "#a05fc4"), ("connections open", "#9aa7b1")],
            legend=True,
        )
        self._faces = Faces()
        charts: list[Lines | Faces] = [self._rate, self._errors, self._latency, self._faces, self._use]
        self._asked = ("", "")
        self.panel = pn.Column(
            self._head,
            pn.FlexBox(self._percentile, self._die, align_items="center"),
            pmui.Grid(
                *(
                    pmui.Grid(
                        pn.pane.Bokeh(chart.plot, sizing_mode="stretch_width", margin=0),
                        size=12 if chart is self._use else {"xs": 12, "sm": 6},
                    )
                    for chart in charts
                ),
                container=True,
                spacing=1,
                sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
        )

    def dark(self, dark: bool) -> None:
        """Its charts follow the page by themselves."""

    def say(self, message: str) -> None:
        self._head.object = failure(message)

    async def refresh(self) -> float | None:
        """Fetch and draw; returns the seconds after which to do so again, ``None`` for never."""
        source, die = self._telemetry.metrics, self._die.value
        # First: that the die-service is asked for it must not stand in the figures as something that happens.
        promise = await self._promise(die) if die else None
        figures = await source.figures()
        self._draw_later(self._draw, figures, die, promise)
        return INTERVAL

    def _draw(self, figures: Figures, die: str | None, promise: Promise | None) -> None:
        percentile = LABELS.get(self._percentile.value, 0.95)
        latency = figures.latency.get(percentile, {})
        grafana = grafana_link(
            self._telemetry.grafana,
            "prometheus",
            [{"expr": RATE_QUERY}, {"expr": ERROR_QUERY}, {"expr": latency_query(percentile)}],
        )
        self._head.object = bar(
            *(_tile(name, figures, latency) for name in self._telemetry.services),
            '<span class="end"></span>',
            grafana,
            self._telemetry.badge(self._telemetry.metrics),
        )
        names = self._telemetry.services
        self._rate.draw(figures.times, [figures.rate.get(name, []) for name in names])
        self._errors.draw(figures.times, [figures.errors.get(name, []) for name in names])
        self._latency.draw(figures.times, [latency.get(name, []) for name in names])
        self._use.draw(figures.times, [figures.in_progress, figures.pool_used, figures.pool_size])
        if die and die == self._die.value:
            self._faces.draw(die, figures.faces.get(die, {}), figures.rolls.get(die, (0.0, 0.0)), promise)


def _tile(name: str, figures: Figures, latency: dict[str, list[float]]) -> str:
    """A service's latest figures in words."""
    rate, errors, slow = (
        next((value for value in reversed(series) if not math.isnan(value)), 0.0)
        for series in (figures.rate.get(name, []), figures.errors.get(name, []), latency.get(name, []))
    )
    failed = f'<span class="bad">{100 * errors / rate:.0f} % failed</span>' if rate and errors else ""
    return (
        f'<span><span class="dot" style="background: {colour(name)}"></span>{escape(name)} <b>{rate:.3g}</b>/s '
        f"{f'<b>{duration_text(slow * 1e9)}</b>' if slow else ''} {failed}</span>"
    )


def _plot(title: str, **options: Any) -> Any:
    return figure(
        title=title, height=HEIGHT, sizing_mode="stretch_width", tools="", toolbar_location=None,
        background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None, **options,
    )  # fmt: skip


class Lines:
    """A chart of lines over time.

    Args:
        title: what its values are, with their unit.
        lines: name and colour of each.
        legend: whether it says which is which; a service's colour is known from above.
    """

    def __init__(self, title: str, lines: Sequence[tuple[str, str]], *, legend: bool = False) -> None:
        self._names = [name for name, _ in lines]
        self._source = ColumnDataSource({"time": [], **{name: [] for name in self._names}})
        self.plot = _plot(title, x_axis_type="datetime", x_range=Range1d(0, 1), y_range=Range1d(0, 1))
        self.plot.xaxis.formatter = DatetimeTickFormatter(
            seconds="%H:%M:%S", minsec="%H:%M:%S", minutes="%H:%M", hourmin="%H:%M", hours="%H:%M"
        )
        self.plot.xaxis.ticker.desired_num_ticks = 4
        self.plot.yaxis.ticker.desired_num_ticks = 4
        self.plot.xgrid.visible = False
        for name, paint in lines:
            named = {"legend_label": name} if legend else {}
            self.plot.line("time", name, source=self._source, color=paint, line_width=2, **named)
        if legend:
            self.plot.legend.location = "left"
            self.plot.legend.orientation = "horizontal"
            self.plot.add_layout(self.plot.legend[0], "above")
        self.plot.add_tools(
            HoverTool(
                renderers=self.plot.renderers[:1],
                mode="vline",
                tooltips=[("", "@time{%H:%M:%S}"), *((name, f"@{{{name}}}{{0.000}}") for name in self._names)],
                formatters={"@time": "datetime"},
            )
        )

    def draw(self, times: Sequence[float], series: Sequence[Sequence[float]]) -> None:
        """Show these values: a series a line, as long as the times or empty."""
        columns = {
            name: list(values) or [math.nan] * len(times) for name, values in zip(self._names, series, strict=True)
        }
        change(self._source, data={"time": [at * 1000 for at in times], **columns})
        if times:
            change(self.plot.x_range, start=times[0] * 1000, end=max(times[-1], times[0] + INTERVAL) * 1000)
        top = max((value for values in columns.values() for value in values if value > 0), default=1.0)
        change(self.plot.y_range, end=1.08 * top)


class Faces:
    """How often each face of a die came up, beside what the die promises."""

    def __init__(self) -> None:
        self._source = ColumnDataSource({"face": [], "seen": [], "promised": [], "count": []})
        self.plot = _plot("Faces", x_range=FactorRange(), y_range=Range1d(0, 1))
        self.plot.xgrid.visible = False
        self.plot.yaxis.ticker.desired_num_ticks = 4
        self.plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
        bars = self.plot.vbar("face", top="seen", width=0.7, color=OBSERVED, fill_alpha=0.85, source=self._source)
        self.plot.scatter("face", "promised", marker="dash", size=44, line_width=3, color=PROMISED, source=self._source)
        self.plot.add_tools(
            HoverTool(
                renderers=[bars],
                tooltips=[
                    ("face", "@face"),
                    ("came up", "@count{0} times, @seen{0.0 %}"),
                    ("promised", "@promised{0.0 %}"),
                ],
            )
        )

    def draw(self, die: str, faces: dict[int, float], rolls: tuple[float, float], promise: Promise | None) -> None:
        """Show a die: counts by face, rolls that came out and that failed, and what it promises."""
        promised = list(promise[0]) if promise else []
        shown = sorted({*faces, *promised})
        total = sum(faces.values())
        change(self.plot.x_range, factors=[str(face) for face in shown])
        shares = [promised.count(face) / len(promised) if promised else None for face in shown]
        seen = [faces.get(face, 0.0) / total if total else 0.0 for face in shown]
        columns = {
            "face": [str(face) for face in shown],
            "seen": seen,
            "promised": shares,
            "count": [faces.get(face, 0.0) for face in shown],
        }
        change(self._source, data=columns)
        change(self.plot.y_range, end=1.15 * max((*seen, *filter(None, shares), 0.1)))
        succeeded, failed = rolls
        share = f"{100 * failed / (succeeded + failed):.1f} % failed" if succeeded + failed else "none yet"
        expected = f", promised {100 * promise[1]:.0f} %" if promise else ""
        change(self.plot.title, text=f"{die}: {succeeded + failed:.0f} rolls, {share}{expected}")
