"""A propagator that loses the context, and one with which few traces are recorded; in both packages."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel.fast.spans import LeanTracerProvider
from web.faulty_propagation import FaultyPropagator

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture(params=["standard", "fast"])
def tracer(request: pytest.FixtureRequest) -> Any:
    if request.param == "fast":
        return LeanTracerProvider(Resource.get_empty()).get_tracer("test")
    return TracerProvider(shutdown_on_exit=False).get_tracer("test")


def propagator() -> FaultyPropagator:
    return FaultyPropagator(propagate.get_global_textmap())


def test_without_a_fault_it_behaves_like_the_wrapped_propagator(tracer: Any) -> None:
    faulty = propagator()
    span = tracer.start_span("one", context=faulty.extract(HEADERS))
    assert span.is_recording()
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    carrier: dict[str, str] = {}
    faulty.inject(carrier, trace.set_span_in_context(span))
    assert carrier["traceparent"].startswith(f"00-{TRACE}-")


def test_only_outgoing_context_is_lost(tracer: Any) -> None:
    faulty = propagator()
    faulty.injects = False
    span = tracer.start_span("one", context=faulty.extract(HEADERS))
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    carrier: dict[str, str] = {}
    faulty.inject(carrier, trace.set_span_in_context(span))
    assert carrier == {}


@pytest.mark.parametrize("headers", [HEADERS, {}])
def test_few_traces_are_recorded_and_all_have_an_id(tracer: Any, headers: dict[str, str]) -> None:
    faulty = propagator()
    faulty.sampled = 0.0
    span = tracer.start_span("one", context=faulty.extract(headers))
    context = span.get_span_context()
    assert not span.is_recording()
    assert context.is_valid
    assert not context.trace_flags.sampled
    if headers:
        assert f"{context.trace_id:032x}" == TRACE
    carrier: dict[str, str] = {}
    faulty.inject(carrier, trace.set_span_in_context(span))
    assert carrier["traceparent"].endswith("-00")
    faulty.sampled = 1.0
    assert tracer.start_span("one", context=faulty.extract(headers)).is_recording()


def test_the_recorded_share_of_traces(tracer: Any) -> None:
    faulty = propagator()
    faulty.sampled = 0.5
    recorded = sum(tracer.start_span("one", context=faulty.extract({})).is_recording() for _ in range(1000))
    assert 400 < recorded < 600
