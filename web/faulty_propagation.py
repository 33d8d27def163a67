"""A propagator with two faults that can be switched on in a running service.

It wraps the propagator that ``OTEL_PROPAGATORS`` chooses, and behaves exactly like that one while no fault is on.
"""

from __future__ import annotations

import random

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags


class FaultyPropagator(TextMapPropagator):
    """The propagator of one process.

    Attributes:
        injects: whether outgoing requests carry the trace context.
        sampled: the share of incoming requests, from 0 to 1, whose traces are recorded; ``None`` leaves that to the
            sampler.
    """

    def __init__(self, inner: TextMapPropagator) -> None:
        self._inner = inner
        self._random = random.Random()
        self.injects = True
        self.sampled: float | None = None

    @classmethod
    def install(cls) -> FaultyPropagator:
        """Make it the process's propagator. Call it before any application or client session is created."""
        propagator = cls(propagate.get_global_textmap())
        propagate.set_global_textmap(propagator)
        return propagator

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        found = self._inner.extract(carrier, context, getter)
        if self.sampled is None or self._random.random() < self.sampled:
            return found
        # A parent that is not sampled: the sampler follows it, here and in every service below.
        caller = trace.get_current_span(found).get_span_context()
        ids = (
            (caller.trace_id, caller.span_id)
            if caller.is_valid
            else (self._random.getrandbits(128) | 1, self._random.getrandbits(64) | 1)
        )
        unsampled = NonRecordingSpan(SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(0)))
        return trace.set_span_in_context(unsampled, found)

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        if self.injects:
            self._inner.inject(carrier, context, setter)

    @property
    def fields(self) -> set[str]:
        """No fields: if they were those of W3C, the fast package would write the headers itself."""
        return set()
