"""``dicelab down``: stop a lab."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lab import LabError
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.rundir import RunDir
from lab.terminal import say
from lab.waiting import within

STOP_TIMEOUT = 90.0  # seconds


@dataclass(frozen=True)
class Options:
    run_dir: Path


def run(options: Options, console: Console) -> int:
    """Stop the lab that runs in a run dir and wait for its end; without a running lab it does nothing.

    Raises:
        LabError: when it does not end.
    """
    directory = RunDir(options.run_dir)
    owner = directory.owner()
    if owner is None:
        if EmbeddedPostgres(directory.postgres).stop_left_behind():
            say(console, "The lab was killed earlier and left its database running; that is stopped now.")
        else:
            say(console, f"Nothing runs in {directory.path}.")
        directory.clean_up()
        return 0
    os.kill(owner, signal.SIGTERM)
    for _ in within(STOP_TIMEOUT):
        if directory.owner() is None:
            break
    else:
        raise LabError(f"process {owner} has not ended after {STOP_TIMEOUT:.0f} s")
    say(console, "Stopped.")
    return 0
