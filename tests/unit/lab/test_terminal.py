"""Output for people in narrow terminals."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lab.load.report import show_latency
from lab.terminal import print_table

NAMES = ("p50", "p90", "p95", "p99", "p99.9", "mean", "max")
WIDTHS = (40, 80, 120)


def printed(table: Table, width: int) -> list[str]:
    output = io.StringIO()
    print_table(Console(file=output, width=width), table)
    return output.getvalue().splitlines()


def numbers(lines: Sequence[str]) -> list[str]:
    return re.findall(r"-?\d[\d,.]*", "\n".join(lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_latencies_are_complete_at_any_width(width: int) -> None:
    latency = {"counted": "is measured", **{name: 89260.1 + number for number, name in enumerate(NAMES)}}
    output = io.StringIO()
    show_latency(latency, Console(file=output, width=width))
    lines = output.getvalue().splitlines()
    assert re.findall(r"\d{5}\.\d", output.getvalue()) == [f"8926{number}.1" for number in range(7)]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [60, *WIDTHS])
def test_only_columns_of_several_words_wrap(width: int) -> None:
    table = Table(title="Savings", box=SIMPLE_HEAD)
    for name in ("", "a month", "bytes a roll", "loses"):
        table.add_column(name, overflow="fold")
    table.add_row(
        "a tenth of the traces", "-1,234,567.89", "-12,345", "the traces of rolls that were neither slow nor failed"
    )
    lines = printed(table, width)
    assert numbers(lines) == ["-1,234,567.89", "-12,345"]
    assert max(map(len, lines)) <= width or width == 40  # there each cell has a line, which the terminal wraps


def test_each_cell_has_a_line_where_the_columns_do_not_fit() -> None:
    table = Table("route", "requests", "by status", title="Routes")
    table.add_row("/roll-async", "123456789", "200: 123456789")
    assert printed(table, 30) == [
        "Routes",
        "",
        "route: /roll-async",
        "  requests   123456789",
        "  by status  200: 123456789",
    ]
