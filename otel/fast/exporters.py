"""Where spans go: a file, a collector over HTTP or gRPC, the console."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult

from otel.fast import otlp, spans
from otel.fast.queue import Exporter

# A receiver that stands still for a minute still takes what it was sent once it goes on. Who gives up on an answer
# sooner, the standard exporter after 10 s, sends the batch again and has its spans there twice.
EXPORT_TIMEOUT = 90.0


class TracingError(ValueError):
    """An ``OTEL_*`` variable that cannot be followed."""


@dataclass(frozen=True)
class TraceFile:
    """Where spans go when no OTLP endpoint is given: ``path``, rotated at ``max_bytes``, ``backups`` old ones kept."""

    path: Path
    max_bytes: int
    backups: int


class _FileExporter:
    """OTLP JSON, a batch a line, into a file that is rotated by ``logging``'s own handler.

    The lines go past the handler: it would look at a quarter of a megabyte as text three times, and it keeps to itself
    that a disk is full.
    """

    def __init__(self, resource: Resource, file: TraceFile) -> None:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        self._resource = resource
        self._max_bytes = file.max_bytes
        self._handler = RotatingFileHandler(file.path, backupCount=file.backups, encoding="utf-8")

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.json_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        line = memoryview(otlp.json_batch(self._resource, batch) + b"\n")
        if self._handler.stream is None:  # a rotation failed halfway
            self._handler.stream = self._handler._open()
        before = os.fstat(self._handler.stream.fileno()).st_size
        if before and before + len(line) > self._max_bytes:
            self._handler.doRollover()
            before = 0
        descriptor = self._handler.stream.fileno()
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except OSError:
            os.ftruncate(descriptor, before)  # it is sent again, whole
            raise
        return True

    def shutdown(self) -> None:
        self._handler.close()


class _HttpExporter:
    """OTLP/HTTP with protobuf, by the client of the standard exporter: its endpoint, headers, TLS and compression.

    Its retries are not used: they wait longer and longer, and a collector that is back would not be noticed.
    """

    def __init__(self, resource: Resource, timeout: float) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._resource = resource
        self._timeout = timeout
        self._standard = OTLPSpanExporter()

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.protobuf_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        client = self._standard._client
        data = client._compress(otlp.protobuf_batch(self._resource, batch))
        status = client._submit(data, self._timeout).status_code
        return status is not None and 200 <= status < 400

    def shutdown(self) -> None:
        self._standard.shutdown()  # type: ignore[no-untyped-call]


class _GrpcExporter:
    """OTLP over gRPC, by the standard exporter, handed requests that are made already."""

    def __init__(self, resource: Resource, timeout: float) -> None:
        # Imported where it is needed: it costs a quarter of a second and 20 MB.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        class Standard(OTLPSpanExporter):
            def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
                request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(
                    otlp.protobuf_batch(resource, data)
                )
                return request

        self._standard = Standard(timeout=timeout)

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.protobuf_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        return self._standard.export(batch) is SpanExportResult.SUCCESS  # type: ignore[arg-type]

    def shutdown(self) -> None:
        self._standard.shutdown()


class _ConsoleExporter:
    def __init__(self) -> None:
        self._standard = ConsoleSpanExporter(out=sys.stderr)  # stdout belongs to the logs

    def encode(self, span: spans.LeanSpan) -> ReadableSpan:
        return span.readable()

    def export(self, batch: list[ReadableSpan]) -> bool:
        return self._standard.export(batch) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._standard.shutdown()


def exporters(environ: Mapping[str, str], resource: Resource, file: TraceFile | None) -> list[Exporter]:
    chosen = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    chosen_exporters: list[Exporter] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name == "none":
            continue
        elif name == "console":
            chosen_exporters.append(_ConsoleExporter())
        elif name == "otlp":
            chosen_exporters.append(_otlp_exporter(environ, resource, file))
        else:
            raise TracingError(f"OTEL_TRACES_EXPORTER={name!r}: must be otlp, console or none")
    return chosen_exporters


def _otlp_exporter(environ: Mapping[str, str], resource: Resource, file: TraceFile | None) -> Exporter:
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if file is not None and not endpoint:
        return _FileExporter(resource, file)
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    given = environ.get("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT") or environ.get("OTEL_EXPORTER_OTLP_TIMEOUT")
    try:
        timeout = float(given) if given else EXPORT_TIMEOUT
    except ValueError:
        raise TracingError(f"OTEL_EXPORTER_OTLP_TIMEOUT={given!r}: must be a number of seconds") from None
    if protocol == "http/protobuf":
        return _HttpExporter(resource, timeout)
    if protocol == "grpc":
        return _GrpcExporter(resource, timeout)
    raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: must be http/protobuf or grpc")
