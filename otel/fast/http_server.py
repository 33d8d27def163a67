"""The span of each request that a service answers, as the aiohttp-server instrumentation makes it.

What is left out: finding out anew for each request which headers to capture (none), and labels for OpenTelemetry
metrics (nobody reads them; the metrics here are Prometheus's).
"""

from __future__ import annotations

import os
import re
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.instrumentation import aiohttp_server
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel.fast.spans import SPAN_KEY, Active, LeanSpan, RemoteSpan, current_context

# What is remembered of requests is bounded, in number and in length: callers decide what they ask for.
MAX_REMEMBERED = 4096
LONGEST_REMEMBERED = 512
CAPTURED_HEADERS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_"

# As anything: what is used and replaced below is not all meant to be.
_server: Any = aiohttp_server


def trim() -> None:
    """Replace the middleware; call it before the instrumentor's ``instrument()``."""
    if not any(name.startswith(CAPTURED_HEADERS) for name in os.environ):
        _server.create_aiohttp_middleware = server_middleware


def plain(context: Context) -> bool:
    """Whether the context holds nothing but a span: no baggage, and nothing that switches instrumentation off."""
    return not context or (len(context) == 1 and SPAN_KEY in context)


def standard_propagation() -> bool:
    """Whether trace context and baggage travel as W3C headers, which is the default."""
    propagator = propagate.get_global_textmap()
    return isinstance(propagator, CompositePropagator) and {type(part) for part in propagator._propagators} == {
        TraceContextTextMapPropagator,
        W3CBaggagePropagator,
    }


_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def server_middleware(tracer_provider: trace.TracerProvider | None = None) -> Middleware:
    """What the package's middleware does for traces: a span around each request that is not excluded."""
    tracer: Any = (
        tracer_provider.get_tracer(aiohttp_server.__name__, _server.__version__) if tracer_provider else _server.tracer
    )
    standard = standard_propagation()
    collected: dict[tuple[Any, ...], tuple[str, dict[str, Any]] | None] = {}
    mode = _server._sem_conv_opt_in_mode
    old_names = mode is _server._StabilityMode.DEFAULT

    def described(request: web.Request) -> tuple[str, dict[str, Any]] | None:
        """The span's name and first attributes, which follow from these parts of a request alone; if it gets one."""
        resource = request.match_info.route.resource
        key = (
            request.method,
            request.scheme,
            request.host,
            request.raw_path,
            request.headers.get("User-Agent"),
            request.version,
            resource,
        )
        try:
            return collected[key]
        except KeyError:
            pass
        known = None
        if not _server._excluded_urls.url_disabled(request.path):
            name = aiohttp_server.get_default_span_name(request)
            known = name, aiohttp_server.collect_request_attributes(request, mode)
        if len(request.raw_path) + len(request.host) + len(request.headers.get("User-Agent", "")) <= LONGEST_REMEMBERED:
            if len(collected) >= MAX_REMEMBERED:
                collected.clear()
            collected[key] = known
        return known

    def answered(span: Span, status: int | str) -> None:
        if old_names and type(span) is LeanSpan and type(status) is int:
            span.attributes["http.status_code"] = status
            if status < 500:
                return
        aiohttp_server.set_status_code(span, status, sem_conv_opt_in_mode=mode)  # type: ignore[arg-type]

    @web.middleware
    async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
        known = described(request)
        if known is None or not (plain(current_context()) or is_http_instrumentation_enabled()):
            return await handler(request)
        name, attributes = known
        above = _extracted(request) if standard else propagate.extract(request, getter=aiohttp_server.getter)
        span: Span = tracer.start_span(name, context=above, kind=SpanKind.SERVER, attributes=attributes)
        with Active(span, record=False, set_status=False):
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                answered(span, raised.status_code)
                if isinstance(raised, web.HTTPServerError):
                    span.record_exception(raised)
                raise
            except Exception as raised:
                answered(span, type(raised).__qualname__)
                span.record_exception(raised)
                raise
            answered(span, response.status)
            return response

    return traced


_NO_CONTEXT = Context()


def _extracted(request: web.Request) -> Context:
    """The caller's trace context; whatever is not the plainest case goes the standard way."""
    headers = request.headers
    traceparent = headers.get("traceparent")
    if traceparent is None:
        return _NO_CONTEXT
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or "tracestate" in headers:
        return propagate.extract(request, getter=aiohttp_server.getter)
    trace_id, span_id = int(match[1], 16), int(match[2], 16)
    if not trace_id or not span_id:
        return _NO_CONTEXT
    return Context({SPAN_KEY: RemoteSpan(trace_id, span_id, int(match[3], 16))})
