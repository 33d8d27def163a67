"""Finished spans on their way to an exporter: a bounded queue, a thread, and retries for five minutes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Protocol

from otel.fast import spans
from otel.standard.processor import FLUSH_TIMEOUT, RETRY_FOR, RETRY_INTERVAL

log = logging.getLogger(__name__)

# Spans encoded at a time. One at a time costs twice as much, because of cold caches.
ENCODED_AT_ONCE = 32


class Exporter(Protocol):
    """An exporter; ``encode`` is called by any thread, ``export`` by the queue's only."""

    def encode(self, span: spans.LeanSpan) -> Any: ...

    def export(self, batch: list[Any]) -> bool:
        """Whether the batch arrived."""

    def shutdown(self) -> None:
        """Stop, and end a running attempt."""


class SpanQueue:
    """Hands finished spans to an exporter, in batches, from a thread of its own.

    The SDK's BatchSpanProcessor gives a batch up once its exporter has failed, and keeps no count. Here a
    failed batch is sent again while up to ``capacity`` spans wait behind it; those that find no room, and
    those that cannot be sent at the end, are counted in ``dropped``.
    """

    def __init__(self, exporter: Exporter, *, capacity: int, delay: float, batch: int) -> None:
        """``delay`` is how long, in seconds, spans wait for a batch of ``batch`` to fill.

        Spans are encoded by the caller that ends the last of :data:`ENCODED_AT_ONCE`, or by the thread if there are
        fewer. The thread alone would block the event loop's interpreter, with the spans no longer in the CPU's caches.
        """
        self._exporter = exporter
        self._capacity = capacity
        self._delay = delay
        self._batch = batch
        # A deque's append and popleft are atomic: no lock between the event loop and the thread.
        self._spans: deque[spans.LeanSpan] = deque()
        self._encoded: deque[Any] = deque()
        self._encoded_at_once = min(batch, ENCODED_AT_ONCE)
        # Separate counters, each written by one thread: an addition is not atomic.
        self._refused = 0
        self._lost = 0
        self._reported = 0
        self._closed = False
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="span-queue", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many spans found the queue full, could not be encoded or were not accepted."""
        return self._refused + self._lost

    def add(self, span: spans.LeanSpan) -> None:
        """Take a span that has ended."""
        waiting = self._spans
        if len(waiting) + len(self._encoded) >= self._capacity or self._closed:
            self._refused += 1
            return
        waiting.append(span)
        if len(waiting) >= self._encoded_at_once:
            self._refused += self._encode(self._encoded_at_once)
            if len(self._encoded) >= self._batch and not self._filled.is_set():
                self._filled.set()

    def _waiting(self) -> int:
        return len(self._spans) + len(self._encoded)

    def shutdown(self) -> None:
        """Send what is waiting; gives up after :data:`FLUSH_TIMEOUT` seconds."""
        self._closed = True
        self._stopping.set()
        self._filled.set()
        self._thread.join(FLUSH_TIMEOUT)
        self._exporter.shutdown()  # also ends a running attempt
        self._thread.join(1)
        self._refused += self._waiting()

    def _run(self) -> None:
        while not (self._stopping.is_set() and not self._waiting()):
            self._filled.wait(self._delay)
            # Cleared before the spans are taken: a span added in between sets it again.
            self._filled.clear()
            self._lost += self._encode(len(self._spans))
            for _ in range(0, len(self._encoded), self._batch):
                self._send([self._encoded.popleft() for _ in range(min(self._batch, len(self._encoded)))])
            self._report()

    def _encode(self, most: int) -> int:
        """Encode up to ``most`` spans in a row; returns how many could not be encoded."""
        lost = 0
        take, encode, keep = self._spans.popleft, self._exporter.encode, self._encoded.append
        for _ in range(most):
            try:
                span = take()
            except IndexError:  # another thread has taken the rest
                break
            try:
                keep(encode(span))
            except Exception:  # one span that cannot be encoded must not lose the others
                lost += 1
                log.exception("Span not encoded", extra={"fields": {}})
        return lost

    def _report(self) -> None:
        if lost := self.dropped - self._reported:
            log.error("%s spans dropped", lost, extra={"fields": {}})
            self._reported += lost

    def _send(self, batch: list[Any]) -> None:
        deadline = time.monotonic() + RETRY_FOR
        refused = False
        while True:
            try:
                if self._exporter.export(batch):
                    if refused:
                        log.info("Span export succeeded again", extra={"fields": {}})
                    return
            except Exception:
                log.exception("Spans not exported", extra={"fields": {}})
            if not refused:
                refused = True
                log.warning("Span export failed; retrying", extra={"fields": {}})
            if self._stopping.is_set() or time.monotonic() > deadline:
                self._lost += len(batch)
                return
            self._report()
            self._stopping.wait(RETRY_INTERVAL)
