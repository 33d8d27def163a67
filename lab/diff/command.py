"""The command: its options, and both forms of its output."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from rich.console import Console

from lab.diff.changes import document, text
from lab.diff.portrait import portray
from lab.terminal import say


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        before, after: numbers of stages.
        seed: the seed of the rolls in both stages.
        static: compare files only; start no lab.
    """

    before: int
    after: int
    seed: int = 7
    static: bool = False
    json: bool = False


def run(options: Options, console: Console) -> int:
    """Run the command.

    Raises:
        LabError: when a stage does not start, or does not respond.
    """
    before, after = asyncio.run(portray((options.before, options.after), options.seed, options.static))
    if options.json:
        print(json.dumps(document(before, after), indent=2, ensure_ascii=False))
    else:
        for line in text(before, after):
            say(console, line)
    return 0
