"""The bytes of spans equal those that the exporters of OpenTelemetry send."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from lab.cost.otlp import BATCH, Size, exports, records, size
from otel.standard.files import FileExporter, RotatingFile


@pytest.fixture
def spans() -> list[ReadableSpan]:
    """Spans of one service as its code creates them: with attributes of each type, an exception and a link."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "dice-roller", "service.version": "1"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("roller", "1.2")
    with tracer.start_as_current_span("GET /roll", kind=SpanKind.SERVER) as parent:
        parent.set_attributes({"http.route": "/roll", "http.response.status_code": 500, "cached": False, "ratio": 0.25})
        with tracer.start_as_current_span("roll 1", links=[Link(parent.get_span_context())]) as span:
            span.set_attribute("faces", [1, 2, 3])
            span.record_exception(ValueError("no die"))
            span.set_status(Status(StatusCode.ERROR, "no die"))
    return list(memory.get_finished_spans())


@pytest.fixture
def document(spans: list[ReadableSpan], tmp_path: Path) -> dict[str, object]:
    """The line of a trace file with these spans."""
    file = RotatingFile(tmp_path / "traces.jsonl", 10**6, 1)
    FileExporter(spans[0].resource, file).export(spans)
    file.close()
    content: dict[str, object] = json.loads((tmp_path / "traces.jsonl").read_text())
    return content


def test_spans_from_a_file_have_the_bytes_of_the_exporter(
    spans: list[ReadableSpan], document: dict[str, object]
) -> None:
    sent = encode_spans(spans)
    (body,) = exports(records(document))
    again = ExportTraceServiceRequest.FromString(body)
    assert [span.name for span in again.resource_spans[0].scope_spans[0].spans] == ["roll 1", "GET /roll"]
    # The file's encoder leaves out empty fields; otherwise it is the same message.
    expected = ExportTraceServiceRequest.FromString(sent.SerializeToString())
    assert again.resource_spans[0].scope_spans[0].spans == expected.resource_spans[0].scope_spans[0].spans
    assert len(body) == pytest.approx(sent.ByteSize(), abs=4)
    assert size(records(document)) == Size(len(body), len(gzip.compress(body)))


def test_the_sizes_of_single_spans_add_up_to_the_export(document: dict[str, object]) -> None:
    found = records(document)
    envelope = len(next(exports([found[0]]))) - found[0].size
    assert len(next(exports(found))) == pytest.approx(envelope + sum(record.size for record in found), abs=4)


def test_a_large_batch_is_sent_in_several_exports(document: dict[str, object]) -> None:
    many = records(document) * BATCH
    bodies = list(exports(many))
    assert len(bodies) == 2
    for body in bodies:
        assert len(ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans) == BATCH
    assert size(many).compressed < size(many).raw / 10  # the same spans repeat
