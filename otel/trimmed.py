"""The instrumentation packages, without the work that nothing in this lab looks at.

The packages still decide what the HTTP and SQL spans are called, what they carry and when they have failed, and the
server's and the database's instrumentor still put themselves in place. What is replaced is how they get there, because
that is most of what telemetry cost: a test holds these spans against those that the packages make by themselves.
Where the time went: finding out anew for each request which headers to capture (none), labels for OpenTelemetry
metrics (nobody reads them; the metrics here are Prometheus's), parsing a URL that was just put together, and two new
classes for each query.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from typing import Any

from aiohttp import ClientResponse, ClientResponseError, ClientSession, web
from aiohttp.typedefs import Handler, Middleware
from aiopg.connection import Cursor
from multidict import CIMultiDict
from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.instrumentation import aiohttp_client, aiohttp_server
from opentelemetry.instrumentation.aiopg import aiopg_integration
from opentelemetry.instrumentation.aiopg.aiopg_integration import AiopgIntegration, AsyncCursorTracer
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from otel.spans import NO_STATE, SPAN_KEY, Active, LeanSpan, RemoteSpan, current, current_context

# What is remembered of requests is bounded, in number and in length: callers decide what they ask for.
MAX_REMEMBERED = 4096
LONGEST_REMEMBERED = 512
CAPTURED_HEADERS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_"

# As anything: what is used and replaced below is not all meant to be.
_server: Any = aiohttp_server
_client: Any = aiohttp_client
_aiopg: Any = aiopg_integration


def trim() -> None:
    """Replace the hooks; call it before the instrumentors' ``instrument()``."""
    if not any(name.startswith(CAPTURED_HEADERS) for name in os.environ):
        _server.create_aiohttp_middleware = server_middleware
    _aiopg.get_traced_pool_proxy = _traced_pool


def _plain(context: Context) -> bool:
    """Whether the context holds nothing but a span: no baggage, and nothing that switches instrumentation off."""
    return not context or (len(context) == 1 and SPAN_KEY in context)


def _standard_propagation() -> bool:
    """Whether trace context and baggage travel as W3C headers, which is the default."""
    propagator = propagate.get_global_textmap()
    return isinstance(propagator, CompositePropagator) and {type(part) for part in propagator._propagators} == {
        TraceContextTextMapPropagator,
        W3CBaggagePropagator,
    }


# --- HTTP server ---

_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def server_middleware(tracer_provider: trace.TracerProvider | None = None) -> Middleware:
    """What the package's middleware does for traces: a span around each request that is not excluded."""
    tracer: Any = (
        tracer_provider.get_tracer(aiohttp_server.__name__, _server.__version__) if tracer_provider else _server.tracer
    )
    standard = _standard_propagation()
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
        if known is None or not (_plain(current_context()) or is_http_instrumentation_enabled()):
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


# --- HTTP client ---


def trace_session(session: ClientSession) -> None:
    """Do for a session what the package's ``create_trace_config()`` does for traces.

    Each request has a span, one also where it is sent again on a fresh connection, and sends its trace context along.
    An answer of 500 or above leaves the exception event that a failed call leaves anyway; a call that aiohttp refuses
    before it sends anything leaves a failed span, where the package leaves none. Put around the one method
    that all requests go through, because a trace configuration is told of a dozen more things, each with an object
    of its own: that takes 15 µs a request, this 2.
    """
    mode = _client._StabilityMode.DEFAULT
    tracer = trace.get_tracer(aiohttp_client.__name__, _client.__version__, schema_url=_client._get_schema_url(mode))
    standard = _standard_propagation()
    excluded = _client.get_excluded_urls("AIOHTTP_CLIENT")

    @lru_cache(MAX_REMEMBERED)
    def described(method: str, url: URL) -> tuple[str, dict[str, Any]] | None:
        """The span's name and first attributes, if there is to be one; a service asks for a handful of URLs."""
        if excluded.url_disabled(str(url)):
            return None
        attributes: dict[str, Any] = {}
        _client._set_http_method(attributes, method, _client.sanitize_method(method), mode)
        _client._set_http_url(attributes, _client.redact_url(str(url)), mode)
        return _client._get_span_name(method), attributes

    request = session._request

    async def traced_request(method: str, url: str | URL, **kwargs: Any) -> ClientResponse:
        target = url
        if type(target) is not URL or kwargs.get("params"):
            try:
                target = session._build_url(target).update_query(kwargs.get("params") or {})
            except (TypeError, ValueError):
                return await request(method, url, **kwargs)  # which says what is wrong
        plain = _plain(current_context())
        if not (plain or is_http_instrumentation_enabled()):
            return await request(method, url, **kwargs)
        short = len(target.raw_path) + len(target.raw_query_string) <= LONGEST_REMEMBERED
        known = (described if short else described.__wrapped__)(method.upper(), target)
        if known is None:
            return await request(method, url, **kwargs)
        name, attributes = known
        given = kwargs.pop("headers", None)
        headers: MutableMapping[str, str] = CIMultiDict(given) if given else {}
        span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        if standard and plain and type(span) is LeanSpan and span.trace_state is NO_STATE:
            headers["traceparent"] = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.flags:02x}"
        else:
            propagate.inject(headers, context=trace.set_span_in_context(span))
        try:
            response = await request(method, url, headers=headers, **kwargs)
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__qualname__)
            span.record_exception(error)
            span.end()
            raise
        status = response.status
        span.set_attribute("http.status_code", status)
        if status >= 400:
            if status >= 500:
                reason = response.reason or "server error"
                span.record_exception(ClientResponseError(response.request_info, (), status=status, message=reason))
            span.set_status(StatusCode.ERROR)
        span.end()
        return response

    # Past the session's own ``__setattr__``, which in debug mode warns of attributes that are not its own.
    object.__setattr__(session, "_request", traced_request)


# --- SQL ---


def _traced_pool(pool: Any, integration: AiopgIntegration) -> Any:
    """The pool itself, whose connections hand out cursors that trace; the package wraps pool, connection and cursor."""
    tracer = _CursorTracer(integration)

    class TracedCursor(Cursor):  # type: ignore[misc]
        async def execute(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().execute, *args, **kwargs)

        async def executemany(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().executemany, *args, **kwargs)

        async def callproc(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().callproc, *args, **kwargs)

    def trace_cursors(connection: Any) -> None:
        make = connection._cursor

        async def traced_cursor(*args: Any, **kwargs: Any) -> Any:
            cursor = await make(*args, **kwargs)
            cursor.__class__ = TracedCursor
            return cursor

        connection._cursor = traced_cursor

    connected = pool._on_connect

    async def on_connect(connection: Any) -> None:
        if connected is not None:
            await connected(connection)
        trace_cursors(connection)

    for connection in pool._free:
        trace_cursors(connection)
    pool._on_connect = on_connect
    return pool


class _CursorTracer(AsyncCursorTracer):
    """The package's tracer of cursors, which remembers what the span of a statement is called and carries."""

    def __init__(self, integration: AiopgIntegration) -> None:
        super().__init__(integration)
        self._known: dict[Any, tuple[str, dict[str, Any]]] = {}

    async def traced_execution(self, cursor: Any, query_method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        statement = args[0] if args else None
        known = self._known.get(statement) if type(statement) is str else None
        if known is None:
            return await self._first(statement, cursor, query_method, args, kwargs)
        name, attributes = known
        with self._db_api_integration._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
            return await query_method(*args, **kwargs)

    async def _first(
        self, statement: Any, cursor: Any, query_method: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        async def watched(*args: Any, **kwargs: Any) -> Any:
            span = current()
            if span is not None and type(statement) is str and len(self._known) < MAX_REMEMBERED:
                self._known[statement] = span.name, span.attributes.copy()
            return await query_method(*args, **kwargs)

        return await super().traced_execution(cursor, watched, *args, **kwargs)
