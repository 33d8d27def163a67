"""Prints the table of a lab's parts, from its state file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lab.supervise.rundir import RunDir
from lab.terminal import ANY_WIDTH, print_table, say


def parts(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The state file's entries for the services, the engines and the embedded database."""
    found = [*state["services"], *state.get("engines", [])]
    if state.get("postgres", {}).get("pid"):
        found.append({**state["postgres"], "name": "postgres", "url": ""})
    return found


def announce(console: Console, run_dir: RunDir, state: Mapping[str, Any]) -> None:
    """Print what ``dicelab up`` has started."""
    print_overview(console, state)
    say(console, f"Logs and traces: {run_dir.path}", "dim")


def print_overview(console: Console, state: Mapping[str, Any], ready: Mapping[str, str] | None = None) -> None:
    """Print a table of the parts; without a terminal, in plain columns.

    Args:
        ready: the readiness of each part, by name; adds a column.
    """
    table = Table(
        title=f"Dice Lab, stage {state['stage']}, {state['telemetry']} telemetry",
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
    )
    for column in ("Service", "URL"):
        table.add_column(column, no_wrap=True)
    table.add_column("pid")
    if ready is not None:
        table.add_column("State")
    for part in parts(state):
        row = [part["name"], part["url"], ", ".join(map(str, part.get("workers", [part["pid"]])))]
        if ready is not None:
            again = f"started again {part['restarts']}x" if part["restarts"] else ""
            row.append(", ".join(filter(None, (ready.get(part["name"], ""), again))))
        table.add_row(*row)
    if console.is_terminal:
        print_table(console, table)
    else:
        console.print(table, width=ANY_WIDTH, highlight=False)
