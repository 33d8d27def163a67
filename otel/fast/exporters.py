"""The exporters of spans: to a file, to a collector over HTTP or gRPC, to the console."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

from otel.fast import otlp, spans
from otel.fast.queue import Exporter
from otel.standard import variables
from otel.standard.files import RotatingFile
from otel.standard.variables import TraceFile

COMPRESSIONS: dict[str, Callable[[bytes], bytes] | None] = {
    "none": None,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


class _FileExporter:
    """OTLP JSON, one batch in each line."""

    def __init__(self, resource: Resource, file: TraceFile) -> None:
        self._resource = resource
        self._file = RotatingFile(file.path, file.max_bytes, file.backups)

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded[str]:
        return span.tracer.scope, otlp.json_span(span)

    def export(self, batch: list[otlp.Encoded[str]]) -> bool:
        self._file.write(otlp.json_batch(self._resource, batch) + b"\n")
        return True

    def shutdown(self) -> None:
        self._file.close()


class _HttpExporter:
    """OTLP/HTTP with protobuf, to the endpoint of the standard variables."""

    def __init__(self, resource: Resource, timeout: float) -> None:
        import requests  # here, because most labs write files

        def variable(name: str) -> str:
            return variables.otlp(name, "")

        own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        self._url = own or f"{base.removesuffix('/')}/v1/traces"
        self._resource = resource
        self._timeout = timeout
        self._broken = requests.ConnectionError
        self._session = session = requests.Session()
        session.headers["Content-Type"] = "application/x-protobuf"
        session.headers.update(parse_env_headers(variable("HEADERS"), liberal=True))
        session.verify = variable("CERTIFICATE") or True
        certificate, key = variable("CLIENT_CERTIFICATE"), variable("CLIENT_KEY")
        session.cert = (certificate, key) if certificate and key else certificate or None
        self._compress = COMPRESSIONS[variables.otlp_compression()]
        if self._compress is not None:
            session.headers["Content-Encoding"] = variables.otlp_compression()

    def encode(self, span: spans.LeanSpan) -> otlp.Encoded[bytes]:
        return span.tracer.scope, otlp.protobuf_span(span)

    def export(self, batch: list[otlp.Encoded[bytes]]) -> bool:
        data = otlp.protobuf_batch(self._resource, batch)
        if self._compress is not None:
            data = self._compress(data)
        try:
            status = self._post(data)
        except self._broken:  # most likely an idle connection that the collector has closed
            status = self._post(data)
        return 200 <= status < 400

    def _post(self, data: bytes) -> int:
        response = self._session.post(self._url, data=data, timeout=self._timeout, allow_redirects=False)
        return response.status_code

    def shutdown(self) -> None:
        self._session.close()


class _StandardExporter:
    """Any exporter of the SDK, with the SDK's spans."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def encode(self, span: spans.LeanSpan) -> ReadableSpan:
        return span.readable()

    def export(self, batch: list[ReadableSpan]) -> bool:
        return self._exporter.export(batch) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._exporter.shutdown()


def exporters(resource: Resource, file: TraceFile | None) -> list[Exporter]:
    """The exporters that the standard variables choose."""
    chosen: list[Exporter] = []
    for name in variables.exporter_names():
        if name == "console":
            chosen.append(_StandardExporter(ConsoleSpanExporter(out=sys.stderr)))  # stdout is for log lines
        elif file is not None and not variables.otlp_endpoint():
            chosen.append(_FileExporter(resource, file))
        elif variables.otlp_protocol() == "grpc":
            # Imported here: it takes a quarter of a second and 20 MB.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            chosen.append(_StandardExporter(OTLPSpanExporter(timeout=variables.otlp_timeout())))
        else:
            chosen.append(_HttpExporter(resource, variables.otlp_timeout()))
    return chosen
