"""``dicelab sql``: queries the spans, log lines and samples of a run dir with SQL."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import InputError
from lab.tables import Result, Tables, check, mentions_samples
from lab.terminal import ANY_WIDTH, print_table, printable, say

MAX_ROWS = 1000  # rows of a table for people; --json and --csv print all


@dataclass(frozen=True)
class Options:
    run_dir: Path
    query: str
    json: bool = False
    csv: bool = False


def run(options: Options, console: Console) -> int:
    """Print the result of the query, and on stderr what is missing from the tables.

    Raises:
        InputError: when there is no run dir, or the query is refused.
    """
    if options.json and options.csv:
        raise InputError("give --json or --csv, not both")
    check(options.query)  # a typo is reported before the files are loaded, which can take many seconds
    with Tables.of(options.run_dir, mentions_samples(options.query)) as tables:
        for note in tables.left_out:
            print(f"dicelab: left out: {printable(note)}", file=sys.stderr)
        result = tables.query(options.query)
    if options.json:
        _print_json(result)
    elif options.csv:
        _print_csv(result)
    else:
        _print_table(result, console)
    return 0


def _print_json(result: Result) -> None:
    """Print an array with an object for each row, one a line. Of columns with the same name the last one counts."""
    rows = [
        json.dumps(dict(zip(result.columns, map(_plain, row), strict=True)), ensure_ascii=False) for row in result.rows
    ]
    print("[\n" + ",\n".join(rows) + "\n]" if rows else "[]")


def _print_csv(result: Result) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.columns)
    writer.writerows([_cell(value) for value in row] for row in result.rows)


def _print_table(result: Result, console: Console) -> None:
    # Without a terminal plain columns, so that other programs can process the lines.
    terminal = console.is_terminal
    table = Table(box=box.SIMPLE_HEAD if terminal else None, show_edge=False, pad_edge=False)
    for place, name in enumerate(result.columns):
        values = [row[place] for row in result.rows[:MAX_ROWS] if row[place] is not None]
        numeric = bool(values) and all(isinstance(value, int | float | Decimal) for value in values)
        table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in result.rows[:MAX_ROWS]:
        table.add_row(*(Text(printable(_cell(value)).replace("\n", "\\n")) for value in row))
    if not terminal:
        console.width = ANY_WIDTH  # a console without a terminal has 80 columns
    print_table(console, table)
    count = len(result.rows)
    shown = f", the first {MAX_ROWS} are shown; --json and --csv print all" if count > MAX_ROWS else ""
    say(console, f"({count:,} {'row' if count == 1 else 'rows'}{shown})", "dim")


def _cell(value: Any) -> str:
    """A value as text: nothing for NULL, a float with at most six decimals, a nested value as JSON."""
    plain = _plain(value)
    if plain is None:
        return ""
    if isinstance(plain, float):
        return f"{round(plain, 6)}"
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value that JSON can represent; ``None`` for NaN and infinity."""
    if isinstance(value, datetime) and value.tzinfo is None:
        return f"{value.isoformat(timespec='microseconds' if value.microsecond % 1000 else 'milliseconds')}Z"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_cell(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, bool | int | str | None) else str(value)
