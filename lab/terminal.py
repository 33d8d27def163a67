"""Output of commands for people."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

REFRESH = 0.2  # seconds
ANY_WIDTH = 10_000  # columns; more than any table needs
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Escape control characters: text may contain user input, which must not control the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line unchanged: without markup, highlighting or line breaks (the terminal wraps it)."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table without cutting or splitting a number.

    In a narrow console only columns of several words wrap. If that is not enough, each cell gets a line of its own.
    """
    needed = console.measure(table, options=console.options.update_width(ANY_WIDTH))
    if needed.minimum > console.width:
        _print_cells(console, table)
        return
    if needed.maximum > console.width:
        for column in table.columns:
            cells = [str(cell) for cell in column.cells]
            if not any(" " in cell for cell in cells):
                words = " ".join((str(column.header), *cells)).split()
                column.width = max(map(cell_len, words), default=1)
    console.print(table)


def _print_cells(console: Console, table: Table) -> None:
    """Print the first cell of each row, and below it each other cell after the name of its column."""
    if table.title:
        say(console, f"{table.title}\n")
    names = [str(column.header) for column in table.columns]
    width = max(map(cell_len, names))
    for row in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = map(str, row)
        say(console, f"{names[0]}: {first}" if names[0] else first, "bold")
        for name, cell in zip(names[1:], others, strict=True):
            say(console, f"  {name:{width}}  {cell}".rstrip())


@asynccontextmanager
async def progress(what: str, words: Callable[[], str], share: Callable[[], float | None]) -> AsyncIterator[None]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal.

    Args:
        what: the name of the work.
        words: returns a short description of the state.
        share: returns how much is done, from 0 to 1, or ``None`` if that is unknown.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[words]}"), console=Console(stderr=True), transient=True
    ) as bar:
        task_id = bar.add_task(what, total=None, words="")

        async def update() -> None:
            while True:
                done = share()
                bar.update(task_id, words=words(), total=None if done is None else 1, completed=done or 0)
                await asyncio.sleep(REFRESH)

        task = asyncio.ensure_future(update())
        try:
            yield
        finally:
            task.cancel()
