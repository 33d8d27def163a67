"""The metrics view: current figures of each service, a latency heat map, objectives, charts, cost, a die's faces."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend.explorer.colours import colour
from frontend.explorer.context import Context
from frontend.explorer.grafana import explore_link
from frontend.explorer.metrics import alerts, cost
from frontend.explorer.metrics.chart import Chart, Series, chart
from frontend.explorer.model import BOUNDS, Cell, duration_text
from frontend.explorer.sources.figures import ENOUGH, PERCENTILES, Figures
from frontend.explorer.sources.prometheus import ERROR_QUERY, RATE_QUERY, latency_query

FOLLOW = 2.0  # seconds between two fetches
LABELS = {f"p{percentile * 100:g}": percentile for percentile in PERCENTILES}
COLUMNS = 30  # of the heat map
MIN_STEP = 5_000_000_000  # nanoseconds
OBSERVED = "#2269b3"
# The specification of a die: its faces, and the share of its rolls that fail.
Specification = tuple[Sequence[int], float]


@dataclass(frozen=True)
class Tile:
    """A service's latest figures in words."""

    service: str
    rate: str
    failed: str
    latency: str


class MetricsView:
    """Shows the figures of the time range.

    Args:
        context: the explorer's.
        specification: fetches a die's specification; returns ``None`` when that fails.
    """

    name, title = "metrics", "Metrics"
    regions = (alerts.REGION, "figures", "heat", "charts", cost.REGION, "faces")

    def __init__(self, context: Context, specification: Callable[[str], Awaitable[Specification | None]]) -> None:
        self._context = context
        self._specification = specification
        self._percentile = "p95"
        self._service = "dice-roller"  # of the heat map
        self._die = ""
        self.choose_die()
        on = context.bridge.on
        on("metrics.percentile", lambda value: self._set(percentile=value))
        on("metrics.service", lambda value: self._set(service=value))
        on("metrics.die", lambda value: self._set(die=value))

    def choose_die(self) -> None:
        """Select an existing die; the fair one if the user has chosen none."""
        dice = self._context.dice
        if self._die not in dice:
            self._die = "fair" if "fair" in dice else next(iter(dice), "")

    def show(self, service: str) -> None:
        """Show the latencies of a service."""
        self._take(service=service)

    def read(self, query: Mapping[str, str]) -> None:
        self._take(percentile=query.get("latency", "p95"), service=query.get("service", ""), die=query.get("die", ""))

    def query(self) -> dict[str, str]:
        found = {}
        if self._percentile != "p95":
            found["latency"] = self._percentile
        if self._service != "dice-roller":
            found["service"] = self._service
        if self._die != "fair":
            found["die"] = self._die
        return {name: value for name, value in found.items() if value}

    def _take(self, **values: Any) -> None:
        allowed = {"percentile": LABELS, "service": self._context.telemetry.services, "die": self._context.dice}
        for name, value in values.items():
            if value in allowed[name]:
                setattr(self, f"_{name}", value)

    def _set(self, **values: Any) -> None:
        self._take(**values)
        self._context.changed(False)

    def draw(self) -> None:
        self._context.show("figures", "logs/loading.html")

    def show_failure(self, message: str) -> None:
        self._context.show("figures", "failure.html", message=message)

    async def refresh(self) -> float | None:
        telemetry, die, service = self._context.telemetry, self._die, self._service
        since, until = self._context.range.bounds()
        await alerts.refresh(self._context)
        await cost.refresh(self._context)
        if telemetry.traces is not None:  # first: available at once, while rates need two readings
            await self._refresh_heat(service, since, until)
        # Before the figures: this request to the die-service must not appear in them.
        specification = await self._specification(die) if die else None
        figures = await telemetry.metrics.figures(since, until)
        self._draw_figures(figures)
        self._draw_charts(figures)
        if die == self._die:
            self._draw_faces(figures, specification)
        return FOLLOW

    # --- what is shown ---

    def _draw_figures(self, figures: Figures) -> None:
        telemetry = self._context.telemetry
        percentile = LABELS[self._percentile]
        self._context.show(
            "figures",
            "metrics/figures.html",
            collecting=len(figures.times) < 2,
            every=figures.every,
            tiles=[_tile(name, figures, self._percentile, percentile) for name in telemetry.services],
            rates_over=figures.rates_over,
            latency_over=figures.latency_over,
            objectives=figures.objectives,
            objectives_over=figures.objectives_over,
            link=explore_link(
                self._context,
                "prometheus",
                [{"expr": RATE_QUERY}, {"expr": ERROR_QUERY}, {"expr": latency_query(percentile)}],
            ),
        )

    def _draw_charts(self, figures: Figures) -> None:
        names, clock = self._context.telemetry.services, self._context.clock
        percentile = figures.latency.get(LABELS[self._percentile], {})
        few = not any(value == value for values in percentile.values() for value in values)
        latency = figures.mean if few else percentile

        def drawn(title: str, over: str, series: Sequence[Series], number: Callable[[float], str]) -> Chart:
            return chart(title, over, figures.times, series, number, lambda at: clock.time(at * 1e9))

        def by_service(values: Mapping[str, Sequence[float]]) -> list[Series]:
            return [Series(name, colour(name), values.get(name, ())) for name in names]

        charts = [
            drawn("Requests", f"a second, over {figures.rates_over}", by_service(figures.rate), _rate),
            drawn("Failed requests (5xx)", f"a second, over {figures.rates_over}", by_service(figures.errors), _rate),
            drawn(
                "Mean latency" if few else f"Latency, {self._percentile}",
                f"over {figures.latency_over}"
                + (f"; {self._percentile} is shown from {ENOUGH} requests in that time" if few else ""),
                by_service(latency),
                _seconds,
            ),
        ]
        if any(value == value for value in figures.in_progress):
            rolls = Series("rolls of batches", OBSERVED, figures.in_progress)
            charts.append(drawn("Rolls of batches in progress", "at each reading", [rolls], _count))
        if any(value == value for value in figures.pool_size):
            series = [Series("used", OBSERVED, figures.pool_used), Series("open", "#5c6b78", figures.pool_size)]
            charts.append(drawn("Database connections", "at each reading", series, _count))
        self._context.show(
            "charts", "metrics/charts.html", charts=charts, percentiles=LABELS, percentile=self._percentile
        )

    def _draw_faces(self, figures: Figures, specification: Specification | None) -> None:
        faces = figures.faces.get(self._die, {})
        specified = list(specification[0]) if specification else []
        total = sum(faces.values())
        rows = [
            (
                face,
                faces.get(face, 0.0),
                faces.get(face, 0.0) / total if total else 0.0,
                specified.count(face) / len(specified) if specified else None,
            )
            for face in sorted({*faces, *specified})
        ]
        succeeded, failed = figures.rolls.get(self._die, (0.0, 0.0))
        self._context.show(
            "faces",
            "metrics/faces.html",
            dice=self._context.dice,
            die=self._die,
            rows=rows,
            longest=max((max(seen, expected or 0.0) for _, _, seen, expected in rows), default=0.0) or 1.0,
            rolls=succeeded + failed,
            failed=failed,
            error_rate=specification[1] if specification else None,
        )

    async def _refresh_heat(self, service: str, since: int, until: int) -> None:
        source = self._context.telemetry.traces
        if source is None:
            return
        end = until or time.time_ns()
        step = max(MIN_STEP, _round_step((end - (since or end - 3600 * 10**9)) * 99 // 100 // COLUMNS))
        last = end // step * step
        first = last - (COLUMNS - 1) * step
        cells = await source.heat(max(since, first), until, step)
        found = {(cell.start, cell.bucket): cell for cell in cells if cell.service == service}
        used = {cell.bucket for cell in found.values()}
        buckets = range(max(used, default=8), min(used, default=4) - 1, -1)
        self._context.show(
            "heat",
            "metrics/heat.html",
            services=self._context.telemetry.services,
            service=service,
            columns=list(range(first, last + step, step)),
            end=last + step,
            step=_step_text(step),
            rows=[(_bucket_name(bucket), bucket) for bucket in buckets],
            cells=found,
            most=max((cell.count for cell in found.values()), default=1),
            shade=_shade,
            total=sum(cell.count for cell in found.values()),
        )


def _shade(cell: Cell, most: int) -> int:
    """The darkness of a cell, in percent: by the logarithm of its count."""
    return 14 + round(40 * math.log1p(cell.count) / math.log1p(most))


def _bucket_name(bucket: int) -> str:
    if bucket == 0:
        return f"below {duration_text(BOUNDS[0])}"
    if bucket == len(BOUNDS):
        return f"{duration_text(BOUNDS[-1])} and more"
    return f"{duration_text(BOUNDS[bucket - 1])} to {duration_text(BOUNDS[bucket])}"


def _round_step(nanoseconds: int) -> int:
    """The next round step: 5, 10, 30 seconds, 1, 2, 5, 10 minutes, …"""
    for seconds in (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600):
        if nanoseconds <= seconds * 10**9:
            return seconds * 10**9
    return -(-nanoseconds // (3600 * 10**9)) * 3600 * 10**9


def _step_text(nanoseconds: int) -> str:
    seconds = nanoseconds // 10**9
    return f"{seconds} s" if seconds < 60 else f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _tile(name: str, figures: Figures, label: str, percentile: float) -> Tile:
    def latest(values: Sequence[float]) -> float:
        return values[-1] if values else math.nan

    rate, errors = latest(figures.rate.get(name, ())), latest(figures.errors.get(name, ()))
    slow, mean = latest(figures.latency.get(percentile, {}).get(name, ())), latest(figures.mean.get(name, ()))
    latency = f"{label} {_seconds(slow)}" if slow == slow else f"mean {_seconds(mean)}" if mean == mean else ""
    failed = f"{100 * errors / rate:.0f} % failed" if rate > 0 and errors > 0 else ""
    return Tile(name, _rate(rate) if rate == rate else "", failed, latency)


def _rate(value: float) -> str:
    return f"{value:.3g}/s" if value < 1000 else f"{value:.0f}/s"


def _seconds(value: float) -> str:
    return duration_text(value * 1e9) if value else "0"


def _count(value: float) -> str:
    return f"{value:g}"
