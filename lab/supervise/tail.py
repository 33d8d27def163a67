"""The log lines of all services on one terminal, readable and in colour."""

from __future__ import annotations

import json
import queue
import re
import threading
from typing import Any

from rich.console import Console
from rich.text import Text

COLOURS = {"dice-roller": "cyan", "die-service": "magenta", "frontend": "green"}
LEVELS = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
# Shown in front or not at all; everything else is a field of the event.
FIXED = {"timestamp", "level", "message", "logger", "trace_id", "span_id", "exception"}
# A terminal that cannot keep up is told how much it missed.
MAX_WAITING = 2000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    """Log lines hold what users sent; it must not steer the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def render(service: str, line: bytes) -> Text:
    """One line as text: time, service, level, message, fields and the start of the trace id."""
    try:
        document: dict[str, Any] = json.loads(line)
        time, level, message = str(document["timestamp"])[11:23], str(document["level"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        return Text.assemble(
            f"{'':12} ",
            (f"{service:11} ", COLOURS.get(service, "")),
            (_printable(line.decode(errors="replace")), "red"),
        )
    text = Text.assemble(
        (time, "dim"), " ", (f"{service:11}", COLOURS.get(service, "")), " ", (f"{level:8}", LEVELS.get(level, "")), " "
    )
    text.append(_printable(message), LEVELS.get(level, ""))
    for name, value in document.items():
        if name not in FIXED:
            text.append(f" {_printable(name)}=", "dim").append(_printable(str(value)))
    if "trace_id" in document:
        text.append(f" trace={str(document['trace_id'])[:8]}", "dim")
    if "exception" in document:
        text.append("\n" + _printable(str(document["exception"])), "red")
    return text


class Tail:
    """Prints lines from a thread of its own, so that a slow terminal holds up nobody."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: queue.Queue[tuple[str, bytes] | None] = queue.Queue(MAX_WAITING)
        self._missed = 0
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def lines(self, service: str, lines: list[bytes]) -> None:
        for line in lines:
            try:
                self._lines.put_nowait((service, line))
            except queue.Full:
                self._missed += 1

    def stop(self) -> None:
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return  # nobody reads the terminal
        self._thread.join(2)

    def _run(self) -> None:
        while (item := self._lines.get()) is not None:
            self._console.print(render(*item), soft_wrap=True, highlight=False)
            if self._missed and self._lines.empty():
                missed, self._missed = self._missed, 0
                self._console.print(f"… {missed} lines not shown; the log files have them all", style="dim")
