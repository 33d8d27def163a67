"""What a lab does while its disk is full: it says so once, and goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

# No space, no space in the user's quota, and the limit of a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Unwritable:
    """The log files that cannot be written now. Says once that there are some, and once that there are none any more.

    Args:
        say: called with each message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._failing = False
        self._waiting: set[Path] = set()  # files whose lines are kept
        self._lost = 0

    def failed(self, path: Path, error: OSError, keep: bool) -> None:
        """A file could not be written; ``keep`` tells whether its lines are kept until it can."""
        if keep:
            self._waiting.add(path)
        if not self._failing:
            self._failing = True
            self._say(f"{path} cannot be written: {error.strerror}. The services keep their log lines until it can.")

    def written(self, path: Path) -> None:
        """A file was written."""
        if self._failing:
            self._waiting.discard(path)
            if not self._waiting:
                self._failing = False
                self._say(f"Log files can be written again.{self._losses()}")

    def lost(self, path: Path, lines: int) -> None:
        """Lines of a file are given up."""
        self._waiting.discard(path)
        self._lost += lines

    def report_losses(self) -> None:
        """Say how many lines were lost since the last message, if any were."""
        if losses := self._losses():
            self._say(losses.strip())

    def _losses(self) -> str:
        lost, self._lost = self._lost, 0
        return f" Log lines lost: {lost:,}." if lost else ""


class TolerantFile:
    """Writes to an open text file, without errors while the disk is full: 8 kB then wait, and further text is lost."""

    def __init__(self, file: TextIO) -> None:
        # With a buffer of its own: PYTHONUNBUFFERED takes that of stdout away.
        self._file = open(file.fileno(), "w", encoding=file.encoding, errors=file.errors, closefd=False)

    def write(self, text: str) -> int:
        self._tolerate(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        self._tolerate(self._file.flush)

    def close(self) -> None:
        """Write what waits, if that is possible now."""
        self._tolerate(self._file.close)

    @staticmethod
    def _tolerate(call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def discard_unwritten() -> None:
    """Discard text for stdout that cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            discard_output()


def discard_output() -> None:
    """Discard what waits for stdout, and all that follows: Python would try to write it at the exit, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
