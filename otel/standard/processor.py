"""What the SDK's batch processor lacks: retries for five minutes, and a count of every span that is lost.

A ``SpanExporter`` around another one, which retries, and a ``SpanProcessor`` around the SDK's, which counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel.standard.text import encodable
from otel.standard.variables import Batches

log = logging.getLogger(__name__)

# A failed batch is sent again every second for five minutes: a restart of the collector loses nothing, and a batch
# that is never accepted does not hold up the others forever.
RETRY_INTERVAL = 1.0
RETRY_FOR = 300.0
# Seconds that a process waits at its end for its last spans to be exported.
FLUSH_TIMEOUT = 5.0

_processors: list[BoundedSpanProcessor] = []


class RetryingExporter(SpanExporter):
    """Sends a batch again until the exporter behind it succeeds, for :data:`RETRY_FOR` seconds."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._reported = 0
        self.stopping = threading.Event()
        self.dropped = 0
        self.finished = 0  # spans that were exported or dropped after they had been in a batch

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        spans = [encodable(span) for span in spans]
        deadline = time.monotonic() + RETRY_FOR
        retrying = False
        while (result := self._attempt(spans)) is not SpanExportResult.SUCCESS:
            if not retrying:
                retrying = True
                log.warning("Span export failed; retrying", extra={"fields": {}})
            if self.stopping.wait(RETRY_INTERVAL) or time.monotonic() > deadline:
                self.drop(len(spans))
                break
            self.report()
        else:
            if retrying:
                log.info("Span export succeeded again", extra={"fields": {}})
        self.finished += len(spans)
        self.report()
        return result

    def _attempt(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return self._exporter.export(spans)
        except Exception:
            log.exception("Spans not exported", extra={"fields": {}})
            return SpanExportResult.FAILURE

    def drop(self, spans: int) -> None:
        with self._lock:  # called from several threads
            self.dropped += spans

    def report(self) -> None:
        if lost := self.dropped - self._reported:
            self._reported += lost
            log.error("%s spans dropped", lost, extra={"fields": {}})

    def shutdown(self) -> None:
        self._exporter.shutdown()


class BoundedSpanProcessor(SpanProcessor):
    """The SDK's batch processor, which counts the spans it has no room for instead of replacing older ones."""

    def __init__(self, exporter: RetryingExporter, batches: Batches) -> None:
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter, **batches)
        self._room = batches["max_queue_size"]
        self._accepted = 0
        self._lock = threading.Lock()
        _processors.append(self)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            full = self._accepted - self._exporter.finished >= self._room
            self._accepted += not full
        if full:
            self._exporter.drop(1)
        else:
            self._processor.on_end(span)

    def shutdown(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    @property
    def dropped(self) -> int:
        return self._exporter.dropped

    def stop_retrying(self) -> None:
        """Give each batch that still waits one more attempt."""
        self._exporter.stopping.set()

    def lost_at_end(self) -> int:
        """Spans that were dropped or are not exported yet."""
        return self._exporter.dropped + self._accepted - self._exporter.finished


def dropped() -> int:
    """How many of this process's spans were dropped."""
    return sum(processor.dropped for processor in _processors)


def shut_down(provider: TracerProvider) -> None:
    """Export the spans that still wait, for at most :data:`FLUSH_TIMEOUT` seconds, and log how many are lost."""
    for processor in _processors:
        processor.stop_retrying()
    # In a daemon thread: a collector that does not respond must not keep the process alive.
    flushing = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
    flushing.start()
    flushing.join(FLUSH_TIMEOUT)
    if lost := sum(processor.lost_at_end() for processor in _processors):
        log.error("%s spans of this process were never exported", lost, extra={"fields": {}})
