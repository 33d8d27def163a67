"""Our spans against those of the SDK: the same content in every encoding."""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans as standard_json
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as standard_protobuf
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from otel.fast import otlp, spans
from otel.fast.queue import SpanQueue
from otel.fast.spans import LeanSpan, LeanTracerProvider

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SIMPLE = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
OTHER = st.one_of(st.lists(st.integers(0, 9), max_size=3), st.lists(TEXT, max_size=3), st.binary(max_size=5))
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), SIMPLE, max_size=8)
IDS = st.integers(1, 2**64 - 1)


def provider() -> tuple[LeanTracerProvider, list[LeanSpan]]:
    ended: list[LeanSpan] = []
    made = LeanTracerProvider(Resource.create({"service.name": "tests", "answer": 42, "ratio": 0.5, "yes": True}))
    made.add_sink(ended.append)
    return made, ended


CONTENT = st.fixed_dictionaries(
    {
        "scope": st.tuples(TEXT.filter(bool), st.sampled_from([None, "1.0"])),
        "above": st.none() | st.tuples(IDS, IDS, st.sampled_from([None, TraceState([("a", "1")])])),
        "links": st.sampled_from([[], [Link(SpanContext(5, 6, True), {"l": 1})]]),
        "name": TEXT,
        "kind": st.sampled_from(list(SpanKind)),
        "attributes": ATTRIBUTES,
        "more": st.just({}) | ATTRIBUTES | st.dictionaries(TEXT.filter(bool), OTHER, max_size=2),
        "events": st.lists(st.tuples(TEXT, ATTRIBUTES, IDS), max_size=2),
        "status": st.tuples(st.sampled_from(list(StatusCode)), st.none() | TEXT),
    }
)


def finished(content: dict[str, Any]) -> LeanSpan:
    """A span with arbitrary content."""
    made, ended = provider()
    context = None
    if content["above"]:
        trace_id, span_id, state = content["above"]
        parent = SpanContext(trace_id, span_id, True, TraceFlags(TraceFlags.SAMPLED), state)
        context = trace.set_span_in_context(NonRecordingSpan(parent))
    span = made.get_tracer(*content["scope"]).start_span(
        content["name"], context, content["kind"], attributes=content["attributes"], links=content["links"]
    )
    span.set_attributes(content["more"])
    for name, attributes, timestamp in content["events"]:
        span.add_event(name, attributes, timestamp)
    span.set_status(*content["status"])
    span.end()
    assert ended == [span]
    return ended[0]


def without_empty(value: Any) -> Any:
    """As in protobuf, empty fields are absent."""
    if isinstance(value, dict):
        return {key: without_empty(entry) for key, entry in value.items() if entry not in ([], "", {})}
    return [without_empty(entry) for entry in value] if isinstance(value, list) else value


@settings(max_examples=100, deadline=None)
@given(st.lists(CONTENT, min_size=1, max_size=3))
def test_encoders_agree_with_the_standard_encoders(contents: list[dict[str, Any]]) -> None:
    batch = [finished(content) for content in contents]
    for span in batch:
        resource = span.tracer.resource
        protobuf = otlp.protobuf_batch(resource, [(span.tracer.scope, otlp.protobuf_span(span))])
        assert ExportTraceServiceRequest.FromString(protobuf) == standard_protobuf([span.readable()])
        line = otlp.json_batch(resource, [(span.tracer.scope, otlp.json_span(span))])
        expected = standard_json([span.readable()]).to_dict()
        assert without_empty(json.loads(line)) == without_empty(expected)
    resource = batch[0].tracer.resource
    whole = otlp.protobuf_batch(resource, [(span.tracer.scope, otlp.protobuf_span(span)) for span in batch])
    counted = ExportTraceServiceRequest.FromString(whole).resource_spans[0].scope_spans
    assert sum(len(scope.spans) for scope in counted) == len(batch)


def test_attribute_cache_distinguishes_types() -> None:
    made, ended = provider()
    for value in (1, True, 1.0, "1", 0, False, 0.0, -0.0):
        made.get_tracer("t").start_span("s", attributes={"key": value}).end()
    seen = [json.loads(otlp.json_span(span))["attributes"][0]["value"] for span in ended]
    assert [next(iter(value)) for value in seen] == [
        *("intValue", "boolValue", "doubleValue", "stringValue", "intValue", "boolValue", "doubleValue", "doubleValue")
    ]
    for span in ended:
        ours = ExportTraceServiceRequest.FromString(
            otlp.protobuf_batch(made.resource, [(span.tracer.scope, otlp.protobuf_span(span))])
        )
        assert ours == standard_protobuf([span.readable()])


def test_invalid_unicode_is_replaced() -> None:
    made, ended = provider()
    made.get_tracer("t").start_span("bad \udc80", attributes={"agent": "\udcff!"}).end()
    (span,) = ended
    assert json.loads(otlp.json_span(span))["attributes"][0]["value"] == {"stringValue": "?!"}
    message = ExportTraceServiceRequest.FromString(
        otlp.protobuf_batch(made.resource, [(span.tracer.scope, otlp.protobuf_span(span))])
    )
    assert message.resource_spans[0].scope_spans[0].spans[0].name == "bad ?"


@pytest.mark.parametrize("state", [None, TraceState([("a", "b")])])
def test_invalid_unicode_is_replaced_for_the_standard_encoders(state: TraceState | None) -> None:
    """A caller with a trace state and a header that is not UTF-8: its span is left to the standard encoders."""
    odd = "caf\udce9"
    content = {"scope": ("x", None), "above": (1, 2, state), "links": [], "name": odd, "kind": SpanKind.SERVER}
    span = finished(
        {
            **content,
            "attributes": {"user_agent": odd, "list": [odd, "b"]},
            "more": {},
            "events": [(odd, {"k": odd}, 1)],
            "status": (StatusCode.ERROR, odd),
        }
    )
    (scope,) = orjson.loads(otlp.json_batch(span.tracer.resource, [(span.tracer.scope, otlp.json_span(span))]))[
        "resourceSpans"
    ][0]["scopeSpans"]
    assert scope["spans"][0]["name"] == "caf?"
    assert scope["spans"][0]["status"]["message"] == "caf?"
    request = ExportTraceServiceRequest.FromString(
        otlp.protobuf_batch(span.tracer.resource, [(span.tracer.scope, otlp.protobuf_span(span))])
    )
    written = request.resource_spans[0].scope_spans[0].spans[0]
    assert {entry.key for entry in written.attributes} == {"user_agent", "list"}
    assert written.attributes[0].value.string_value == "caf?"


def test_unusual_attribute_values_are_left_to_the_standard_encoders() -> None:
    made, ended = provider()
    values: list[Any] = [float("inf"), float("nan"), 2**70, None, ["a", 1]]
    for value in values:
        made.get_tracer("t").start_span("s", attributes={"key": value, "kept": 1}).end()
    for span in ended:
        assert "kept" in [entry["key"] for entry in json.loads(otlp.json_span(span))["attributes"]]


def test_limits_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    made, ended = provider()
    made.get_tracer("t").start_span("s", attributes={"a": "1", "b": "2", "c": "long text"}).end()
    document = json.loads(otlp.json_span(ended[0]))
    assert document["attributes"] == [
        {"key": "b", "value": {"stringValue": "2"}},
        {"key": "c", "value": {"stringValue": "lon"}},
    ]
    assert document["droppedAttributesCount"] == 1


def test_default_limits_are_those_of_the_sdk() -> None:
    made, ended = provider()
    span = made.get_tracer("t").start_span("s", attributes={f"k{number}": number for number in range(130)})
    for number in range(130):
        span.add_event(f"e{number}")
    span.end()
    document = json.loads(otlp.json_span(ended[0]))
    assert len(document["attributes"]) == len(document["events"]) == 128
    assert document["droppedAttributesCount"] == document["droppedEventsCount"] == 2


def test_child_spans_record_parent_and_exception() -> None:
    made, ended = provider()
    tracer = made.get_tracer("t")
    with tracer.start_as_current_span("root") as root:
        with pytest.raises(KeyError), tracer.start_as_current_span("child"):
            raise KeyError("missing")
        assert trace.get_current_span() is root
        assert spans.current() is root
    child = next(span for span in ended if span.name == "child")
    assert isinstance(root, LeanSpan)
    assert (child.trace_id, child.parent_id) == (root.trace_id, root.span_id)
    assert child.status_code is StatusCode.ERROR
    assert child.status_description == "KeyError: 'missing'"
    ((name, _, attributes),) = child.events
    assert name == "exception"
    assert attributes["exception.type"] == "KeyError"
    assert "KeyError: 'missing'" in attributes["exception.stacktrace"]
    assert root.status_code is StatusCode.UNSET


def test_an_ended_span_ignores_changes() -> None:
    made, ended = provider()
    span = made.get_tracer("t").start_span("s")
    span.set_status(StatusCode.OK)
    span.set_status(StatusCode.ERROR)  # OK is final
    span.end()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.update_name("late")
    span.end()
    assert len(ended) == 1
    assert (ended[0].name, ended[0].attributes, ended[0].events) == ("s", {}, [])
    assert ended[0].status_code is StatusCode.OK


@pytest.mark.parametrize(
    ("sampler", "argument", "above", "kept"),
    [
        ("always_on", "", None, True),
        ("always_off", "", None, False),
        ("parentbased_always_on", "", None, True),
        ("parentbased_always_on", "", 0, False),
        ("parentbased_always_off", "", 1, True),
        ("always_on", "", 0, True),
        ("traceidratio", "0", 1, False),
        ("parentbased_traceidratio", "0", 1, True),
        ("parentbased_traceidratio", "1", 0, False),
    ],
)
def test_samplers_decide_as_documented(
    monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, above: int | None, kept: bool
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    made, ended = provider()
    context = None
    if above is not None:
        context = trace.set_span_in_context(NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(above))))
    tracer = made.get_tracer("t")
    with tracer.start_as_current_span("s", context) as span, tracer.start_as_current_span("below") as below:
        pass
    assert [span.name for span in ended] == (["below", "s"] if kept else [])
    # Log lines still get the trace id.
    assert span.get_span_context().trace_id == below.get_span_context().trace_id
    assert span.get_span_context().trace_flags.sampled is kept
    if above is not None:
        assert span.get_span_context().trace_id == 7


async def test_spans_of_tasks_do_not_mix() -> None:
    made, ended = provider()
    tracer = made.get_tracer("t")

    async def one(number: int) -> None:
        with tracer.start_as_current_span(f"outer {number}") as outer:
            await asyncio.sleep(0)
            with tracer.start_as_current_span(f"inner {number}"):
                await asyncio.sleep(0)
            assert spans.current() is outer

    await asyncio.gather(*(one(number) for number in range(20)))
    by_id = {span.span_id: span for span in ended}
    inner = [span for span in ended if span.name.startswith("inner")]
    assert len(inner) == 20
    assert all(by_id[span.parent_id].name == span.name.replace("inner", "outer") for span in inner)


def test_a_span_that_cannot_be_encoded_is_dropped_alone() -> None:
    class Picky:
        def __init__(self) -> None:
            self.names: list[str] = []

        def encode(self, span: LeanSpan) -> str:
            if span.name == "bad":
                raise ValueError("bad")
            return span.name

        def export(self, batch: list[str]) -> bool:
            self.names += batch
            return True

        def shutdown(self) -> None:
            pass

    exporter = Picky()
    queue = SpanQueue(exporter, capacity=10, delay=60, batch=4)
    made, _ = provider()
    made.add_sink(queue.add)
    tracer = made.get_tracer("t")
    for name in ("a", "bad", "c", "d", "e"):
        tracer.start_span(name).end()
    queue.shutdown()
    tracer.start_span("too late").end()
    assert exporter.names == ["a", "c", "d", "e"]
    assert queue.dropped == 2


def test_spans_of_many_threads_are_exported_once() -> None:
    class Keeping:
        def __init__(self) -> None:
            self.names: list[str] = []

        def encode(self, span: LeanSpan) -> str:
            return span.name

        def export(self, batch: list[str]) -> bool:
            assert 0 < len(batch) <= 64
            self.names += batch
            return True

        def shutdown(self) -> None:
            pass

    exporter = Keeping()
    queue = SpanQueue(exporter, capacity=100_000, delay=0.001, batch=64)
    made, _ = provider()
    made.add_sink(queue.add)
    tracer = made.get_tracer("t")

    def end_some(thread: int) -> None:
        for number in range(5000):
            tracer.start_span(f"{thread} {number}").end()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(end_some, range(3)))
        queue.shutdown()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(exporter.names) == sorted(f"{thread} {number}" for thread in range(3) for number in range(5000))
    assert queue.dropped == 0
