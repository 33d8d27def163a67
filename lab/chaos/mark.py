"""Shows in the run dir that an experiment runs: a file with its name, locked as long as it runs.

The exporter makes ``dicelab_experiment_running`` of it. An experiment that is killed leaves the file, and not the lock.
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
    """Mark the experiment as running, unless another one is marked."""
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
