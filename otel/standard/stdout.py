"""What ``logging`` lacks for this lab: a handler for a stdout that may stall."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque

# Lines that may wait while stdout is not read; further ones are dropped and counted.
MAX_WAITING_LINES = 100_000
LINES_PER_WRITE = 1024
WRITE_INTERVAL = 0.02  # seconds a line waits for others, so that one write takes many
FULL = (errno.ENOSPC, errno.EDQUOT)  # a file's disk, or the user's share of it
RETRY_INTERVAL = 0.5  # seconds between attempts to write to a full disk

_handlers: list[StdoutHandler] = []


def dropped() -> int:
    """How many of this process's lines were dropped."""
    return sum(handler.dropped for handler in _handlers)


def write_all(descriptor: int, data: bytes, stopping: threading.Event) -> bool:
    """Write to stdout. While its disk is full, wait for space, or until the service stops.

    Returns:
        Whether all was written. If not, further writes would fail too: stdout is closed, and there is nowhere left to
        report that.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            if error.errno not in FULL or stopping.wait(RETRY_INTERVAL):
                return False
    return True


class StdoutHandler(logging.Handler):
    """Writes lines from a thread of its own: a reader of stdout that stalls must not block the event loop."""

    def __init__(self, formatter: logging.Formatter, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self.dropped = 0
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()
        _handlers.append(self)

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= MAX_WAITING_LINES:
            self.dropped += 1
            return
        try:
            line = self.format(record)
        except Exception as error:  # a line that cannot be formatted must not disappear
            line = self._own_line(f"unprintable log line {record.msg!r} of {record.name}: {type(error).__name__}")
        self._lines.append(line.encode() + b"\n")
        if not self._filled.is_set():
            self._filled.set()

    def _own_line(self, message: str) -> str:
        return self.format(logging.LogRecord(__name__, logging.ERROR, "", 0, message, (), None))

    def stop(self, timeout: float = 5.0) -> None:
        """Write the lines that wait, then end the thread; gives up after ``timeout`` seconds."""
        self._stopping.set()
        self._filled.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        reported = 0
        while not (self._stopping.is_set() and not self._lines):
            self._filled.wait()
            self._stopping.wait(WRITE_INTERVAL)
            self._filled.clear()  # before the lines are taken: a line added from here on sets it again
            while self._lines:
                count = min(len(self._lines), LINES_PER_WRITE)
                if not self._write(b"".join([self._lines.popleft() for _ in range(count)])):
                    return
            if lost := self.dropped - reported:
                reported += lost
                self._write(self._own_line(f"{lost} log lines dropped: stdout is not being read").encode() + b"\n")

    def _write(self, data: bytes) -> bool:
        return write_all(self._descriptor, data, self._stopping)
