"""What commands print for people."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line as it is: no markup, nothing highlighted, never broken (the terminal wraps it)."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)
