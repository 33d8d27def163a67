"""Spans with a low overhead: the API's span, tracer and provider, with the SDK's sampler.

The SDK's span takes two locks, validates each attribute as it is set and builds its context, its bounded lists
and a read-only copy of itself whether or not anything reads them: starting, activating, filling and ending one
takes 25 µs, one of these 4 µs. A lean span is used by one task at a time, keeps its attributes unchecked, and passes
itself to the sinks when it ends. A sink that needs the SDK's ``ReadableSpan``, with the SDK's validation and limits,
asks the span for one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from random import getrandbits
from time import time_ns
from types import TracebackType
from typing import Any, cast

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, ParentBased, Sampler
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    DEFAULT_TRACE_STATE,
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    TraceState,
)
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.util.types import Attributes

from otel.fast import private
from otel.fast.stacktraces import stacktrace
from otel.standard.text import utf8

log = logging.getLogger(__name__)

(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())  # the key under which the API keeps the current span
SAMPLED = TraceFlags.SAMPLED
RANDOM = TraceFlags.RANDOM_TRACE_ID
NO_STATE = DEFAULT_TRACE_STATE
# Kept, because reading a member from its enum class takes as long as a dictionary lookup and a call.
UNSET, INTERNAL = StatusCode.UNSET, SpanKind.INTERNAL
# The API keeps its context in this variable.
_variable = cast("ContextVar[Context]", private.CONTEXT_VARIABLE.find())
current_context: Callable[[], Context] = _variable.get

# Called with each span that has ended.
Sink = Callable[["LeanSpan"], None]


class LeanSpan(Span):
    """A recording span; made by :class:`LeanTracer`. Not for use by two threads at once."""

    __slots__ = (
        "_context",
        "attributes",
        "end_time",
        "events",
        "flags",
        "kind",
        "links",
        "name",
        "parent_id",
        "parent_is_remote",
        "span_id",
        "start_time",
        "status_code",
        "status_description",
        "trace_id",
        "trace_state",
        "tracer",
    )

    def __init__(
        self,
        tracer: LeanTracer,
        name: str,
        kind: SpanKind,
        trace_id: str,
        parent_id: str,
        parent_is_remote: bool,
        flags: int,
        trace_state: TraceState,
        attributes: dict[str, Any],
        links: Sequence[Link],
        start_time: int,
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.kind = kind
        # The ids are hex digits, as spans, lines and headers have them.
        self.trace_id = trace_id
        self.span_id = (getrandbits(64) or 1).to_bytes(8, "big").hex()
        self.parent_id = parent_id  # empty: a root
        self.parent_is_remote = parent_is_remote
        self.flags = flags
        self.trace_state = trace_state
        self.attributes = attributes
        self.links = links
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.status_code = UNSET
        self.status_description: str | None = None
        self.start_time = start_time
        self.end_time = 0  # 0: not ended
        self._context: SpanContext | None = None

    # --- the API's span ---

    def get_span_context(self) -> SpanContext:
        context = self._context
        if context is None:
            context = self._context = SpanContext(
                int(self.trace_id, 16), int(self.span_id, 16), False, TraceFlags(self.flags), self.trace_state
            )
        return context

    def is_recording(self) -> bool:
        return not self.end_time

    def set_attribute(self, key: str, value: Any) -> None:
        if self.end_time:
            self._late("attribute")
        else:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        if self.end_time:
            self._late("attribute")
        else:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if self.end_time:
            self._late("event")
        else:
            self.events.append((name, timestamp or time_ns(), dict(attributes or {})))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if self.end_time:
            self._late("link")
        else:
            self.links = [*self.links, Link(context, attributes)]

    def update_name(self, name: str) -> None:
        if self.end_time:
            self._late("name")
        else:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        # By the specification, OK is final, and a status cannot become unset again.
        if self.status_code is StatusCode.OK or code is StatusCode.UNSET:
            return
        if self.end_time:
            self._late("status")
            return
        self.status_code = code
        if code is StatusCode.ERROR:  # no other may have a description
            self.status_description = status.description if isinstance(status, Status) else description

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        self.add_event(
            "exception",
            {
                "exception.type": named,
                "exception.message": str(exception),
                "exception.stacktrace": stacktrace(exception),
                **(attributes or {}),
            },
            timestamp,
        )

    def end(self, end_time: int | None = None) -> None:
        if self.end_time:
            self._late("end")
            return
        self.end_time = end_time or time_ns()
        for sink in self.tracer.sinks:
            sink(self)

    def _late(self, what: str) -> None:
        log.warning("Setting %s on an ended span: %s", what, self.name)

    # --- for sinks ---

    def readable(self) -> ReadableSpan:
        """The span as the SDK's: attributes validated, limits applied, text that UTF-8 cannot encode replaced."""
        limits = self.tracer.limits
        parent = None
        if self.parent_id:
            ids = int(self.trace_id, 16), int(self.parent_id, 16)
            parent = SpanContext(*ids, self.parent_is_remote, TraceFlags(self.flags), self.trace_state)

        def bounded(most: int | None, longest: int | None, attributes: Attributes) -> BoundedAttributes:
            return BoundedAttributes(most, utf8(attributes or {}), immutable=True, max_value_len=longest)

        events = [
            Event(utf8(name), bounded(limits.max_event_attributes, limits.max_attribute_length, attributes), timestamp)
            for name, timestamp, attributes in self.events
        ]
        links = [
            Link(link.context, bounded(limits.max_link_attributes, limits.max_attribute_length, link.attributes))
            for link in self.links
        ]
        return ReadableSpan(
            name=utf8(self.name),
            context=self.get_span_context(),
            parent=parent,
            resource=self.tracer.resource,
            attributes=bounded(limits.max_span_attributes, limits.max_span_attribute_length, self.attributes),
            events=_bounded_list(limits.max_events, events),
            links=_bounded_list(limits.max_links, links),
            kind=self.kind,
            status=Status(self.status_code, utf8(self.status_description)),
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=self.tracer.scope,
        )


class RemoteSpan(NonRecordingSpan):
    """A remote caller's span, of which only the ids are known, as hex digits; the API's context is made on demand."""

    __slots__ = ("flags", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, flags: int) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags

    def get_span_context(self) -> SpanContext:
        return SpanContext(int(self.trace_id, 16), int(self.span_id, 16), True, TraceFlags(self.flags), NO_STATE)

    def __repr__(self) -> str:
        return f"RemoteSpan({self.get_span_context()!r})"


def _bounded_list(most: int | None, entries: Sequence[Any]) -> Sequence[Any]:
    bounded: BoundedList[Any] = BoundedList(most)
    bounded.extend(entries)
    return bounded


class Active:
    """Makes a span the current one for a block; see :meth:`LeanTracer.start_as_current_span`."""

    __slots__ = ("_end", "_record", "_set_status", "_span", "_token")

    def __init__(self, span: Span, record: bool = True, set_status: bool = True, end: bool = True) -> None:
        self._span = span
        self._record = record
        self._set_status = set_status
        self._end = end

    def __enter__(self) -> Span:
        self._token: Token[Context] = _variable.set(Context({**current_context(), SPAN_KEY: self._span}))
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _variable.reset(self._token)
        except ValueError:  # exited in another context than it was entered in; the API reports it
            detach(self._token)
        span = self._span
        if isinstance(error, Exception) and span.is_recording():
            if self._record:
                span.record_exception(error)
            if self._set_status:
                span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
        if self._end:
            span.end()


class LeanTracer(Tracer):
    def __init__(
        self,
        scope: InstrumentationScope,
        resource: Resource,
        sampler: Sampler,
        limits: SpanLimits,
        sinks: Sequence[Sink],
    ) -> None:
        self.scope = scope
        self.resource = resource
        self.limits = limits
        self.default_limits = repr(limits) == _DEFAULT_LIMITS
        self.sinks = sinks
        self._sampler = sampler
        # True for every sampler of the standard variables except always_on, always_off and traceidratio.
        self._follows_parent = isinstance(sampler, ParentBased)
        self._keeps_all = sampler is DEFAULT_ON

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        parent = (current_context() if context is None else context).get(SPAN_KEY)
        remote = False
        if type(parent) is LeanSpan:
            trace_id, parent_id, flags, state = parent.trace_id, parent.span_id, parent.flags, parent.trace_state
        elif type(parent) is RemoteSpan:
            trace_id, parent_id, flags, state, remote = parent.trace_id, parent.span_id, parent.flags, NO_STATE, True
        else:
            above = parent.get_span_context() if isinstance(parent, Span) else INVALID_SPAN_CONTEXT
            trace_number, parent_number, remote, flags, state, valid = above
            if not valid:
                trace_number, parent_number, flags, state = getrandbits(128) or 1, 0, RANDOM, NO_STATE
            elif not state:
                state = NO_STATE
            trace_id, parent_id = f"{trace_number:032x}", f"{parent_number:016x}" if parent_number else ""
        given = dict(attributes) if attributes else {}
        if parent_id and self._follows_parent:
            sampled = flags & SAMPLED
        elif self._keeps_all:
            sampled = SAMPLED
        else:
            result = self._sampler.should_sample(context, int(trace_id, 16), name, kind, given, links)
            sampled = SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else 0
            given = dict(result.attributes or {})
            state = result.trace_state or NO_STATE
        flags = (flags & RANDOM) | sampled
        if not sampled:
            ids = int(trace_id, 16), getrandbits(64) or 1
            return NonRecordingSpan(SpanContext(*ids, False, TraceFlags(flags), state))
        return LeanSpan(
            self, name, kind, trace_id, parent_id, remote, flags, state, given, links or (), start_time or time_ns()
        )

    def start_as_current_span(  # type: ignore[override]  # the API's is a context manager that decorates, too
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Active:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        return Active(span, record_exception, set_status_on_exception, end_on_exit)


_DEFAULT_LIMITS = repr(
    SpanLimits(
        max_attributes=SpanLimits.UNSET,
        max_events=128,
        max_links=128,
        max_span_attributes=128,
        max_event_attributes=128,
        max_link_attributes=128,
        max_attribute_length=SpanLimits.UNSET,
        max_span_attribute_length=SpanLimits.UNSET,
    )
)


class LeanTracerProvider(TracerProvider):
    """Makes tracers of lean spans; the sampler and the limits are those of the standard variables.

    Args:
        resource: the resource of all spans.
    """

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._sampler = SdkTracerProvider(resource=resource, shutdown_on_exit=False).sampler
        self._limits = SpanLimits()
        self._sinks: list[Sink] = []
        self._lean: dict[InstrumentationScope, LeanTracer] = {}

    def add_sink(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        scope = InstrumentationScope(
            instrumenting_module_name, instrumenting_library_version or "", schema_url, attributes
        )
        tracer = self._lean.get(scope)
        if tracer is None:
            tracer = LeanTracer(scope, self.resource, self._sampler, self._limits, self._sinks)
            tracer = self._lean.setdefault(scope, tracer)
        return tracer


def current_span() -> Span | None:
    """The current span of any kind; ``None`` outside of spans."""
    return current_context().get(SPAN_KEY)  # type: ignore[return-value]


def current() -> LeanSpan | None:
    """The current span if it is one of ours; ``None`` outside of spans and inside one that is not sampled."""
    span = current_context().get(SPAN_KEY)
    return span if type(span) is LeanSpan else None


def sampled_trace_id() -> str:
    """The current span's trace id, as hex digits, if that trace is kept; else empty."""
    span = current_context().get(SPAN_KEY)
    if type(span) is LeanSpan:
        return span.trace_id
    if span is None:
        return ""
    context = cast(Span, span).get_span_context()
    return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""


def hex_ids(span: Span | None) -> tuple[str, str] | None:
    """Trace id and span id as 32 and 16 hex digits; ``None`` for no span and for one without ids."""
    if type(span) is LeanSpan:
        return span.trace_id, span.span_id
    if span is None:
        return None
    context = span.get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.trace_id else None
