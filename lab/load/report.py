"""How the commands that generate load print their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = 5  # trace ids on a terminal


def show_latency(latency: Mapping[str, Any], console: Console) -> None:
    """Print percentiles, in milliseconds."""
    values = [name for name in latency if isinstance(latency[name], float)]
    if not values:
        return
    table = Table("latency, ms", *values)
    table.add_row("corrected" if "uncorrected" in latency else "measured", *(f"{latency[name]:.1f}" for name in values))
    if "uncorrected" in latency:
        table.add_row("measured", *(f"{latency['uncorrected'][name]:.1f}" for name in values))
    console.print(table)
    console.print(f"Latency {latency['counted']}.", style="dim", highlight=False, soft_wrap=True)
