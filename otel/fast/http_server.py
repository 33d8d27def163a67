"""The span of each request that a service handles, as the aiohttp-server instrumentation makes it.

It omits two expensive steps of the instrumentation: looking up for each request which headers to capture (none by
default), and computing labels for OpenTelemetry metrics, which are not used here. The attributes that depend on a
request's method, URL and user agent alone are cached.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation import aiohttp_server
from opentelemetry.instrumentation.aiohttp_server.version import __version__
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.http import get_excluded_urls

from otel.fast import conventions
from otel.fast.spans import SPAN_KEY, Active, LeanSpan, RemoteSpan, current_context

# The cache of requests is bounded, in number and in length, because callers choose the URLs.
MAX_REMEMBERED = 4096
LONGEST_REMEMBERED = 512
CAPTURED_HEADERS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_"


def instrument() -> None:
    """Add the middleware to every application created from now on, as the package's instrumentor does."""
    untraced: type[web.Application] = web.Application

    class TracedApplication(untraced):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, middlewares: Sequence[Middleware] = (), **kwargs: Any) -> None:
            super().__init__(*args, middlewares=[server_middleware(), *middlewares], **kwargs)

    web.Application = TracedApplication  # type: ignore[assignment, misc]


def plain(context: Context) -> bool:
    """Whether the context holds nothing but a span: no baggage, and nothing that switches instrumentation off."""
    return not context or (len(context) == 1 and SPAN_KEY in context)


def standard_propagation() -> bool:
    """Whether trace context and baggage are propagated as W3C headers, which is the default."""
    return propagate.get_global_textmap().fields == {"traceparent", "tracestate", "baggage"}


_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_CONTEXT = Context()
_NO_TRACE_ID, _NO_SPAN_ID = "0" * 32, "0" * 16


def server_middleware() -> Middleware:
    """A span around each request that is not excluded."""
    tracer: Any = trace.get_tracer(aiohttp_server.__name__, __version__, schema_url=conventions.HTTP_SCHEMA)
    excluded = get_excluded_urls("AIOHTTP_SERVER")
    standard = standard_propagation()
    captures = any(name.startswith(CAPTURED_HEADERS) for name in os.environ)
    cached: dict[tuple[Any, ...], tuple[str, dict[str, Any]] | None] = {}

    def described(request: web.Request) -> tuple[str, dict[str, Any]] | None:
        """The span's name and first attributes, cached by what they depend on; ``None`` if the request has no span."""
        resource = request.match_info.route.resource
        agent = request.headers.get("User-Agent")
        key = (request.method, request.scheme, request.host, request.raw_path, agent, request.version, resource)
        try:
            return cached[key]
        except KeyError:
            pass
        known = None
        if not excluded.url_disabled(request.path):
            name = f"{conventions.method_name(request.method)} {conventions.route(request)}".rstrip()
            known = name, conventions.of_server(request)
        if len(request.raw_path) + len(request.host) + len(agent or "") <= LONGEST_REMEMBERED:
            if len(cached) >= MAX_REMEMBERED:
                cached.clear()
            cached[key] = known
        return known

    def set_outcome(span: LeanSpan, status: int) -> None:
        conventions.set_response_status(span, status)
        if status >= 500 or status < 100:
            if conventions.NEW_HTTP:
                span.attributes["error.type"] = str(status)
            span.set_status(StatusCode.ERROR)

    @web.middleware
    async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
        known = described(request)
        if known is None or not (plain(current_context()) or is_http_instrumentation_enabled()):
            return await handler(request)
        name, attributes = known
        above = _extracted(request) if standard else propagate.extract(request, getter=aiohttp_server.getter)
        span = tracer.start_span(name, context=above, kind=SpanKind.SERVER, attributes=attributes)
        kept = type(span) is LeanSpan
        if captures and kept:
            span.set_attributes(aiohttp_server.collect_request_headers_attributes(request))
        with Active(span, record=False, set_status=False):
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                if kept:
                    set_outcome(span, raised.status_code)
                    if isinstance(raised, web.HTTPServerError):
                        span.record_exception(raised)
                raise
            except Exception as raised:
                if kept:
                    kind = type(raised).__qualname__
                    if conventions.NEW_HTTP:
                        span.attributes["error.type"] = kind
                    span.set_status(StatusCode.ERROR, f"Non-integer HTTP status: {kind}")
                    span.record_exception(raised)
                raise
            if kept:
                set_outcome(span, response.status)
                if captures:
                    span.set_attributes(aiohttp_server.collect_response_headers_attributes(response))  # type: ignore[arg-type]
            return response

    return traced


def _extracted(request: web.Request) -> Context:
    """The caller's trace context; anything but the simplest case is left to the standard propagator."""
    headers = request.headers
    traceparent = headers.get("traceparent")
    if traceparent is None:
        return _NO_CONTEXT
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or "tracestate" in headers:
        return propagate.extract(request, getter=aiohttp_server.getter)
    trace_id, span_id, flags = match.groups()
    if trace_id == _NO_TRACE_ID or span_id == _NO_SPAN_ID:
        return _NO_CONTEXT
    return Context({SPAN_KEY: RemoteSpan(trace_id, span_id, int(flags, 16))})
