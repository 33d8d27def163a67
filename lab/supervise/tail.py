"""Prints the log lines of all services to the terminal, in colour, limited to a readable number."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lab.terminal import printable

COLOURS = {"dice-roller": "cyan", "die-service": "magenta", "frontend": "green"}
LEVELS = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
# Shown in a fixed place or not at all; all other fields follow the message.
FIXED = {"timestamp", "level", "message", "logger", "trace_id", "span_id", "exception"}
# The terminal shows this many lines a second; rendering one costs as much as a tenth of a roll.
LINES_PER_SECOND = 50
INTERVAL = 0.1  # seconds between prints
HEAD = 80  # the level is within so many bytes from the start of a line
_Line = tuple[int, str, bytes]  # how many lines came before it, the service, the line
_ERROR = re.compile(rb'"level": ?"(?:ERROR|CRITICAL)"')


def render(service: str, line: bytes) -> Text:
    """One line as text: time, service, level, message, fields and the start of the trace id."""
    try:
        document: dict[str, Any] = json.loads(line)
        clock, level, message = str(document["timestamp"])[11:23], str(document["level"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        return Text.assemble(
            f"{'':12} ",
            (f"{service:11} ", COLOURS.get(service, "")),
            (printable(line.decode(errors="replace")), "red"),
        )
    text = Text.assemble(
        (clock, "dim"),
        " ",
        (f"{service:11}", COLOURS.get(service, "")),
        " ",
        (f"{level:8}", LEVELS.get(level, "")),
        " ",
    )
    text.append(printable(message), LEVELS.get(level, ""))
    for name, value in document.items():
        if name not in FIXED:
            text.append(f" {printable(name)}=", "dim").append(printable(str(value)))
    if "trace_id" in document:
        text.append(f" trace={str(document['trace_id'])[:8]}", "dim")
    if "exception" in document:
        text.append("\n" + printable(str(document["exception"])), "red")
    return text


class Tail:
    """Prints up to :data:`LINES_PER_SECOND` in a thread of its own, errors first, and reports how many it left out.

    Args:
        logs: the directory of the log files, which hold every line.
    """

    def __init__(self, console: Console, logs: Path) -> None:
        self._console = console
        self._logs = logs
        self._lock = threading.Lock()
        # The lines to print, in order. Further lines are counted and dropped.
        self._errors: deque[_Line] = deque()
        self._others: deque[_Line] = deque()
        self._number = 0
        self._left_out = 0
        self._errors_left_out = 0
        self._work = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def lines(self, service: str, lines: list[bytes]) -> None:
        """Take lines of a service. The event loop calls this, so it never blocks for long."""
        with self._lock:
            for number, line in enumerate(lines, self._number):
                if not line.startswith(b"{") or _ERROR.search(line, 0, HEAD):  # not JSON: the traceback of a crash
                    if len(self._errors) < LINES_PER_SECOND:
                        self._errors.append((number, service, line))
                    else:
                        self._errors_left_out += 1
                elif len(self._others) < LINES_PER_SECOND:
                    self._others.append((number, service, line))
                else:
                    self._left_out += 1
            self._number += len(lines)
        self._work.set()

    def stop(self) -> None:
        """Print the waiting lines and end; gives up after 2 s if the terminal does not accept them."""
        self._stopped.set()
        self._work.set()
        self._thread.join(2)

    def _run(self) -> None:
        allowed, since, reported = float(LINES_PER_SECOND), time.monotonic(), time.monotonic()
        while True:
            self._work.wait()
            self._work.clear()
            stopped = self._stopped.is_set()
            now = time.monotonic()
            allowed, since = min(LINES_PER_SECOND, allowed + LINES_PER_SECOND * (now - since)), now
            chosen = self._take(2 * LINES_PER_SECOND if stopped else int(allowed))
            allowed -= len(chosen)
            texts = [render(service, line) for _, service, line in chosen]
            if stopped or now - reported >= 1:
                reported = now
                texts += self._report()
            if texts:
                self._console.print(Text("\n").join(texts), soft_wrap=True, highlight=False)
            if stopped:
                return
            if self._waiting():
                self._work.set()
            self._stopped.wait(INTERVAL)

    def _take(self, number: int) -> list[_Line]:
        """The next lines to print, in order; if there are more than ``number``, errors take precedence."""
        taken: list[_Line] = []
        with self._lock:
            while len(taken) < number and (self._errors or self._others):
                taken.append((self._errors or self._others).popleft())
        return sorted(taken)

    def _waiting(self) -> bool:
        return bool(self._errors or self._others or self._left_out or self._errors_left_out)

    def _report(self) -> list[Text]:
        """How many lines were left out since the last report."""
        with self._lock:
            errors, others = self._errors_left_out, self._left_out
            self._errors_left_out = self._left_out = 0
        if not errors + others:
            return []
        with_errors = f", {errors:,} of them errors" if errors else ""
        return [Text(f"… {errors + others:,} more lines{with_errors}; all lines are in {self._logs}", "dim")]
