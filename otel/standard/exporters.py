"""The destinations of spans, by the standard variables: a collector over HTTP or gRPC, the console, a file."""

from __future__ import annotations

import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from otel.standard import variables
from otel.standard.files import FileExporter, RotatingFile
from otel.standard.variables import TraceFile


def exporters(resource: Resource, file: TraceFile | None) -> list[SpanExporter]:
    """The exporters that ``OTEL_TRACES_EXPORTER`` names; ``otlp`` writes the file where no endpoint is set."""
    chosen: list[SpanExporter] = []
    for name in variables.exporter_names():
        if name == "console":
            chosen.append(ConsoleSpanExporter(out=sys.stderr))  # stdout is for log lines
        elif file is not None and not variables.otlp_endpoint():
            chosen.append(FileExporter(resource, RotatingFile(file.path, file.max_bytes, file.backups)))
        elif variables.otlp_protocol() == "grpc":
            # Imported here: it takes a quarter of a second and 20 MB.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

            chosen.append(GrpcSpanExporter(timeout=variables.otlp_timeout()))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

            from otel.standard.session import OneAttemptSession

            # The exporter's own retries wait for up to 32 s: RetryingExporter notices sooner that a collector is back.
            chosen.append(HttpSpanExporter(timeout=0.5, session=OneAttemptSession(variables.otlp_timeout())))
    return chosen
