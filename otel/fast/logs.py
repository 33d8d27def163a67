"""JSON logs: every line a process writes becomes one JSON object on stdout.

Usage::

    stop = logs.start("dice-roller", level="INFO")
    logging.getLogger("roller").info("Roll completed", extra={"fields": {"roll_value": 5}})
    stop()

Library lines, warnings and uncaught exceptions take the same path. A line written inside a span has its
``trace_id`` and ``span_id``; a line of our own also has the fields of its event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from opentelemetry.trace import Span

from otel.fast import spans
from otel.standard.lines import capture, dump, second, timestamp
from otel.standard.stdout import write_all

# A stalled reader of stdout must not block the event loop or exhaust memory: beyond this many waiting lines, new ones
# are dropped, and the loss is logged.
MAX_WAITING_LINES = 100_000
# Lines formatted at a time. One at a time costs three times as much, because of cold caches.
LINES_AT_ONCE = 32
# Pieces of that many lines written at a time, so that a long queue after a stall needs little memory.
PIECES_AT_ONCE = 32
# Lines wait this long, in seconds, for others, so that a busy service writes many lines at once.
WRITE_INTERVAL = 0.02

# A service's event before it is formatted: nanoseconds since the epoch, level, message, current span, fields.
Event = tuple[int, int, str, Span | None, dict[str, Any]]


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own, in batches.

    A line is ``bytes`` with its newline, or an :data:`Event`, which is formatted later: by the caller that writes the
    last of :data:`LINES_AT_ONCE`, or by the thread if there are fewer. If the thread formatted all of them, it would
    block the event loop's interpreter, with the events no longer in the CPU's caches: a tenth of a busy service's
    throughput. ``write`` never waits and never raises.
    """

    def __init__(self, descriptor: int, service: str) -> None:
        self._descriptor = descriptor
        self._service = service
        # A deque's append and popleft are atomic. A list that is replaced could lose a line: another thread may still
        # append to the old one.
        self._lines: deque[bytes | Event] = deque()
        self._pieces: deque[bytes] = deque()  # formatted lines, older than those
        self._taking = threading.Lock()  # held by the thread that takes lines, so that they keep their order
        self.dropped = 0
        self._filled = threading.Event()
        self._woken = False  # a copy of the event's state, which is faster to read
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes | Event) -> None:
        lines = self._lines
        if len(lines) + len(self._pieces) * LINES_AT_ONCE >= MAX_WAITING_LINES:
            self.dropped += 1
            return
        lines.append(line)
        if len(lines) >= LINES_AT_ONCE and self._taking.acquire(blocking=False):
            try:
                self._pieces.append(self._format_next(LINES_AT_ONCE))
            finally:
                self._taking.release()
        if not self._woken:
            self._woken = True
            self._filled.set()

    def stop(self, timeout: float = 5.0) -> None:
        """Write what is waiting, then end the thread; gives up after ``timeout`` seconds."""
        self._stopping.set()
        self._filled.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        reported = 0
        while True:
            self._filled.wait()
            self._stopping.wait(WRITE_INTERVAL)
            stopping = self._stopping.is_set()
            # Cleared before the lines are taken: a line added in between sets it again.
            self._filled.clear()
            self._woken = False
            for _ in range(0, len(self._pieces) + 1, PIECES_AT_ONCE):
                if not self._write_all(self._next()):
                    return
            if dropped := self.dropped - reported:
                reported += dropped
                message = f"{dropped} log lines dropped: stdout is not being read"
                if not self._write_all(plain_line(self._service, message)):
                    return
            if stopping and not self._lines and not self._pieces:
                return

    def _next(self) -> bytes:
        """The bytes to write next: formatted pieces, and after the last piece all other lines."""
        with self._taking:
            pieces = [self._pieces.popleft() for _ in range(min(PIECES_AT_ONCE, len(self._pieces)))]
            if not self._pieces:
                pieces.append(self._format_next(len(self._lines)))
        return b"".join(pieces)

    def _format_next(self, most: int) -> bytes:
        """The next lines, formatted and joined: a line that is kept alone keeps the 4 kB buffer of its encoder."""
        waiting = [self._lines.popleft() for _ in range(min(most, len(self._lines)))]
        return b"".join([line if type(line) is bytes else self._format(line) for line in waiting])

    def _format(self, event: Any) -> bytes:
        nanoseconds, level, message, span, fields = event
        try:
            document = _document(self._service, _timestamp(nanoseconds // 1_000_000), level, message, span)
            document.update(fields)
            try:  # without the options of dump(), which double the time
                return orjson.dumps(document, default=str, option=orjson.OPT_APPEND_NEWLINE)
            except TypeError:
                return dump(document) + b"\n"
        except Exception as error:  # a value that cannot be turned into text must not end the thread
            return plain_line(self._service, f"unprintable log line {message!r}: {type(error).__name__}")

    def _write_all(self, data: bytes) -> bool:
        return write_all(self._descriptor, data, self._stopping)


_writers: list[LineWriter] = []


def dropped() -> int:
    """How many of this process's lines were dropped."""
    return sum(writer.dropped for writer in _writers)


_level_name = lru_cache(16)(logging.getLevelName)


@lru_cache(64)
def _timestamp(milliseconds: int) -> str:
    """As :func:`otel.standard.lines.timestamp`; many lines share their millisecond."""
    return f"{second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


def _document(service: str, moment: str, level: int, message: str, span: Span | None) -> dict[str, Any]:
    """The fields of every line."""
    document = {
        "timestamp": moment,
        "level": _level_name(level),
        "message": message,
        "logger": service,
    }
    if span is not None and (ids := spans.hex_ids(span)):
        document["trace_id"], document["span_id"] = ids
    return document


def plain_line(service: str, error: str) -> bytes:
    """An ERROR line about the logging itself."""
    return dump(_document(service, timestamp(time.time()), logging.ERROR, error, None)) + b"\n"


class JsonHandler(logging.Handler):
    """Turns each record into one JSON line and hands it to the writer."""

    def __init__(self, service: str, writer: LineWriter) -> None:
        super().__init__()
        self._service = service
        self._writer = writer

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the handler's lock: the writer is thread-safe, no line has to wait for another.
        if not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(dump(self._document(record)) + b"\n")
        except Exception as error:  # a line that cannot be formatted must not vanish unseen
            unprintable = f"unprintable log line from {record.pathname}: {error!r}"
            self._writer.write(plain_line(self._service, unprintable))

    def _document(self, record: logging.LogRecord) -> dict[str, Any]:
        moment = timestamp(record.created)
        document = _document(self._service, moment, record.levelno, record.getMessage(), spans.current_span())
        fields = getattr(record, "fields", None)
        if fields is None:
            document["source"] = record.name  # a library's line names the library
        else:
            document.update(fields)
        if record.exc_info and record.exc_info[0] is not None:
            document["exception"] = logging.Formatter().formatException(record.exc_info)
        return document


class _Events:
    """The destination of our own events: the writer that :func:`start` sets, or ``logging`` while there is none."""

    writer: LineWriter | None = None
    level = logging.NOTSET


def events(service: str) -> Callable[..., None]:
    """A function that logs a service's events: ``line(logging.INFO, "Roll completed", roll_value=5)``.

    Nearly all lines are events, and they need none of the features of ``logging``, whose record and handler take 9 µs
    a line. This takes 1 µs.
    """
    logger = logging.getLogger(service)
    current, now = spans.current_context, time.time_ns

    def event(level: int, message: str, /, **fields: Any) -> None:
        """Log one event. ``message`` is not a format string; ``fields`` are plain values beside the fixed ones."""
        if level < _Events.level:
            return
        writer = _Events.writer
        if writer is None:
            logger.log(level, "%s", message, extra={"fields": fields})
            return
        writer.write((now(), level, message, current().get(spans.SPAN_KEY), fields))  # type: ignore[arg-type]

    return event


def start(service: str, level: str = "INFO", descriptor: int = 1) -> Callable[[], None]:
    """Send everything this process logs to ``descriptor`` as JSON lines.

    Args:
        service: the ``logger`` field of every line.
        level: a level name of the ``logging`` module.
        descriptor: an open file descriptor; stdout by default.

    Returns:
        A function that flushes and ends the logging.
    """
    writer = LineWriter(descriptor, service)
    _writers.append(writer)
    restore = capture(JsonHandler(service, writer), level)
    _Events.writer, _Events.level = writer, logging.getLogger().level

    def stop() -> None:
        # From now on, log lines and uncaught exceptions go where they went before start().
        _Events.writer = None
        restore()
        writer.stop()

    return stop
