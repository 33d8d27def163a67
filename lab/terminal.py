"""Output of commands for people."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console

REFRESH = 0.2  # seconds
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Escape control characters: text may contain user input, which must not control the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line unchanged: without markup, highlighting or line breaks (the terminal wraps it)."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


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
