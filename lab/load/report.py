"""How the commands that generate load print their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.terminal import print_table, say

SHOWN = 5  # failed responses on a terminal


def show_latency(latency: Mapping[str, Any], console: Console) -> None:
    """Print percentiles, in milliseconds."""
    values = [name for name in latency if isinstance(latency[name], float)]
    if not values:
        return
    table = Table("latency, ms", *values)
    table.add_row("corrected" if "uncorrected" in latency else "measured", *(f"{latency[name]:.1f}" for name in values))
    if "uncorrected" in latency:
        table.add_row("measured", *(f"{latency['uncorrected'][name]:.1f}" for name in values))
    print_table(console, table)
    console.print(f"Latency {latency['counted']}.", style="dim", highlight=False, soft_wrap=True)


def show_responses(title: str, responses: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print a line for each response, of those in a JSON summary."""
    for one in responses:
        say(console, f"{title:8} {one['ms']:9.1f} ms  {one['status']:>4}  {one['route']}  {one['trace_id']}")


def show_failures(failures: Sequence[Mapping[str, Any]], failed: int, console: Console) -> None:
    """Print the latest failed responses.

    Args:
        failures: those in the JSON summary.
        failed: how many there are in all.
    """
    show_responses("failed", failures[-SHOWN:], console)
    if failed > SHOWN:
        listed = "them" if failed == len(failures) else f"the last {len(failures)}"
        say(console, f"{failed} failed in all; --json lists {listed}")
