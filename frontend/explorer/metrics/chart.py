"""Charts of lines over time, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

WIDTH, HEIGHT = 1000, 100  # of the drawing, which is stretched to the available space; the labels are outside of it
DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 5")  # lines are distinguishable without their colour


@dataclass(frozen=True)
class Series:
    """A line: its values, one for each of the chart's times, NaN where there is none."""

    name: str
    colour: str
    values: Sequence[float]


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn."""

    name: str
    colour: str
    dash: str
    parts: Sequence[str]  # the points of each part without a gap
    latest: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready for its template."""

    title: str
    over: str
    lines: Sequence[Drawn]
    across: Sequence[tuple[float, str]]  # grid lines with their labels: percent of the height, from the top
    along: Sequence[str]  # the first, the middle and the last time
    series: str  # JSON for the values under the pointer
    empty: bool


def chart(
    title: str,
    over: str,
    times: Sequence[float],
    series: Sequence[Series],
    number: Callable[[float], str],
    time_text: Callable[[float], str],
) -> Chart:
    """Lay out a chart.

    Args:
        title: what its values are.
        over: the period that each value covers, in words.
        times: seconds since 1970, rising.
        series: as long as the times, or empty.
        number: formats a value with its unit.
        time_text: formats a time.
    """
    values = [value for line in series for value in line.values if value == value]
    top = _round_up(max(values, default=0.0)) or 1.0
    start, span = (times[0], max(times[-1] - times[0], 1.0)) if times else (0.0, 1.0)

    def x(at: float) -> float:
        return round((at - start) / span * WIDTH, 1)

    def y(value: float) -> float:
        return round(HEIGHT - value / top * HEIGHT, 1)

    lines = []
    for place, line in enumerate(series):
        parts: list[list[str]] = [[]]
        for at, value in zip(times, line.values, strict=False):
            if value == value:
                parts[-1].append(f"{x(at)},{y(value)}")
            elif parts[-1]:
                parts.append([])
        latest = next((value for value in reversed(line.values) if value == value), math.nan)
        lines.append(
            Drawn(
                line.name,
                line.colour,
                DASHES[place % len(DASHES)],
                [" ".join(part if len(part) > 1 else part * 2) for part in parts if part],
                number(latest) if latest == latest else "no value",
            )
        )
    shown = {
        "labels": [time_text(at) for at in times],
        "series": [
            [line.name, [number(value) if value == value else None for value in line.values] or [None] * len(times)]
            for line in series
        ],
    }
    along = [time_text(start + part / 2 * span) for part in range(3)] if len(times) > 1 else []
    across = [(y(top * part / 2), number(top * part / 2)) for part in range(3)]
    return Chart(title, over, lines, across, along, orjson.dumps(shown).decode(), not values)


def _round_up(value: float) -> float:
    """The smallest of 1, 2, 5, 10, … that is not below the value."""
    if value <= 0:
        return 0.0
    size: float = 10 ** math.floor(math.log10(value))
    return next((size * step for step in (1, 2, 5) if value <= size * step), size * 10)
