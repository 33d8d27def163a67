"""Marks an experiment as running: by a file in the run dir, which holds its name and is locked while it runs.

The exporter derives ``dicelab_experiment_running`` from it. A killed experiment leaves the file, but not the lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "experiment"
ATTEMPTS = 5


@contextmanager
def marked(run_dir: Path, experiment: str) -> Iterator[None]:
    """Mark the experiment as running while the block runs, unless another one is marked.

    The mark excludes no other experiment: the lab does, by :mod:`lab.chaos.faults`.
    """
    file = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _locked(file):
            os.truncate(file, 0)
            os.write(file, experiment.encode())
        yield
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    for attempt in range(ATTEMPTS):
        time.sleep(0.02 * attempt)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:  # by another experiment, or for a moment by the exporter
            continue
    return False
