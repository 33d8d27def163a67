"""JSON logs with ``logging``: every line that a process writes becomes one JSON object on stdout.

Usage::

    stop = logs.start("dice-roller", level="INFO")
    line = logs.events("dice-roller")
    line(logging.INFO, "Roll completed", roll_value=5)
    stop()

Lines of libraries, warnings and uncaught exceptions take the same path. A line written inside a span carries its
``trace_id`` and ``span_id``, which leads from the line to the trace and back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from otel.standard import traces
from otel.standard.lines import capture, dump, timestamp
from otel.standard.stdout import StdoutHandler, dropped

__all__ = ["dropped"]  # exported besides what is defined here


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object; ``extra={"fields": {...}}`` adds to the fields that every line has."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "timestamp": timestamp(record.created),
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": self._service,
        }
        trace_id, span_id = traces.current_ids()
        if trace_id:
            document |= {"trace_id": trace_id, "span_id": span_id}
        fields = getattr(record, "fields", None)
        document |= {"source": record.name} if fields is None else fields  # a library's line names the library
        if record.exc_info and record.exc_info[0] is not None:
            document["exception"] = self.formatException(record.exc_info)
        return dump(document).decode()


def events(service: str) -> Callable[..., None]:
    """A function that logs a service's events: ``line(logging.INFO, "Roll completed", roll_value=5)``."""
    logger = logging.getLogger(service)

    def line(level: int, message: str, /, **fields: Any) -> None:
        if logger.isEnabledFor(level):
            # What logger.log() does, without a search of the stack for the caller's file and line, which no line has.
            logger.handle(logger.makeRecord(service, level, "", 0, message, (), None, extra={"fields": fields}))

    return line


def start(service: str, level: str = "INFO", descriptor: int = 1) -> Callable[[], None]:
    """Send everything that this process logs to ``descriptor`` as JSON lines.

    Args:
        service: the ``logger`` field of every line.
        level: a level name of the ``logging`` module.
        descriptor: an open file descriptor; stdout by default.

    Returns:
        A function that writes the last lines and restores the previous logging.
    """
    handler = StdoutHandler(JsonFormatter(service), descriptor)
    restore = capture(handler, level)

    def stop() -> None:
        restore()
        handler.stop()

    return stop
