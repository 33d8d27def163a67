"""Where spans go: a file, a collector over HTTP or gRPC, the console."""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult

from otel.fast import otlp, spans
from otel.fast.queue import Exporter
from otel.standard import variables
from otel.standard.export import RotatingFile
from otel.standard.variables import TraceFile


class _FileExporter:
    """OTLP JSON, a batch a line."""

    def __init__(self, resource: Resource, file: TraceFile) -> None:
        self._resource = resource
        self._file = RotatingFile(file.path, file.max_bytes, file.backups)

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded:
        return span.tracer.scope, otlp.json_span(span)

    def export(self, batch: list[otlp.Encoded]) -> bool:
        self._file.write(otlp.json_batch(self._resource, batch) + b"\n")
        return True

    def shutdown(self) -> None:
        self._file.close()


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


def exporters(resource: Resource, file: TraceFile | None) -> list[Exporter]:
    chosen: list[Exporter] = []
    for name in variables.exporter_names():
        if name == "console":
            chosen.append(_ConsoleExporter())
        elif file is not None and not variables.otlp_endpoint():
            chosen.append(_FileExporter(resource, file))
        elif variables.otlp_protocol() == "grpc":
            chosen.append(_GrpcExporter(resource, variables.otlp_timeout()))
        else:
            chosen.append(_HttpExporter(resource, variables.otlp_timeout()))
    return chosen
