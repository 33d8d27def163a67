"""The span of each request that a client session makes, as the aiohttp-client instrumentation makes it.

A session is wrapped: one coroutine around a whole call, redirects and retries included. An aiohttp ``TraceConfig`` sees
the same, but it makes aiohttp await several events for each request, with parameters: 15 µs a request instead of 2.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Mapping
from functools import lru_cache, partialmethod
from types import TracebackType
from typing import Any, cast

from aiohttp import ClientResponse, ClientResponseError, ClientSession
from opentelemetry import propagate, trace
from opentelemetry.instrumentation import aiohttp_client
from opentelemetry.instrumentation.aiohttp_client.version import __version__
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.http import get_excluded_urls
from yarl import URL

from otel.fast import conventions
from otel.fast.http_server import LONGEST_REMEMBERED, MAX_REMEMBERED, plain, standard_propagation
from otel.fast.spans import NO_STATE, LeanSpan, current_context


def instrument_session(session: ClientSession) -> ClientSession:
    """A session for traced requests: each has a span and propagates its trace context."""
    return cast(ClientSession, TracedSession(session))


class TracedSession:
    """A client session whose requests have spans; all other attributes are those of the session."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._tracer: Any = trace.get_tracer(aiohttp_client.__name__, __version__, schema_url=conventions.HTTP_SCHEMA)
        self._standard = standard_propagation()
        excluded = get_excluded_urls("AIOHTTP_CLIENT")

        def describe(method: str, url: URL) -> tuple[str, dict[str, Any]] | None:
            """The span's name and first attributes; ``None`` for a URL that is excluded."""
            text = str(url)
            if excluded.url_disabled(text):
                return None
            return conventions.method_name(method), conventions.of_client(method, text)

        self._describe = describe
        self._remembered = lru_cache(MAX_REMEMBERED)(describe)  # a service requests a handful of URLs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def request(self, method: str, url: str | URL, **options: Any) -> TracedRequest:
        return TracedRequest(self._request(method.upper(), url, options))

    get = partialmethod(request, "GET")
    options = partialmethod(request, "OPTIONS")
    head = partialmethod(request, "HEAD", allow_redirects=False)
    post = partialmethod(request, "POST")
    put = partialmethod(request, "PUT")
    patch = partialmethod(request, "PATCH")
    delete = partialmethod(request, "DELETE")

    async def _request(self, method: str, url: str | URL, options: dict[str, Any]) -> ClientResponse:
        span = self._start(method, url, options)
        if span is None:
            return await self._session.request(method, url, **options)
        try:
            response = await self._session.request(method, url, **options)
        except BaseException as error:
            _failed(span, error)
            raise
        _record_response(span, response)
        return response

    def _start(self, method: str, url: str | URL, options: dict[str, Any]) -> Span | None:
        """Start the span, if there is to be one, and add its context to the request's headers."""
        alone = plain(current_context())
        if not (alone or is_http_instrumentation_enabled()):
            return None
        try:
            whole = URL(url).update_query(options["params"]) if options.get("params") else URL(url)
        except (TypeError, ValueError):  # the session's own error is the one to raise
            return None
        short = len(whole.raw_path) + len(whole.raw_query_string) <= LONGEST_REMEMBERED
        known = (self._remembered if short else self._describe)(method, whole)
        if known is None:
            return None
        name, attributes = known
        span: Span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        if self._standard and alone and type(span) is LeanSpan and span.trace_state is NO_STATE:
            context = {"traceparent": f"00-{span.trace_id}-{span.span_id}-{span.flags:02x}"}
        else:
            context = {}
            propagate.inject(context, context=trace.set_span_in_context(span))
        given = options.get("headers") or {}
        pairs = given.items() if isinstance(given, Mapping) else given
        options["headers"] = [*(pair for pair in pairs if pair[0].lower() not in context), *context.items()]
        return span


class TracedRequest:
    """The result of a session's methods: awaitable, and an asynchronous context manager."""

    __slots__ = ("_coroutine", "_response")

    def __init__(self, coroutine: Coroutine[Any, Any, ClientResponse]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, ClientResponse]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> ClientResponse:
        self._response = await self._coroutine
        return await self._response.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._response.__aexit__(kind, error, traceback)


def _record_response(span: Span, response: ClientResponse) -> None:
    if type(span) is LeanSpan:
        status = response.status
        conventions.set_response_status(span, status)
        if status >= 500:
            reason = response.reason or "server error"
            span.record_exception(ClientResponseError(response.request_info, (), status=status, message=reason))
        if status >= 400:
            if conventions.NEW_HTTP:
                span.attributes["error.type"] = str(status)
            span.set_status(StatusCode.ERROR)
    span.end()


def _failed(span: Span, error: BaseException) -> None:
    if type(span) is LeanSpan:
        kind = type(error).__qualname__
        if conventions.NEW_HTTP:
            span.attributes["error.type"] = kind
        span.set_status(StatusCode.ERROR, kind)
        span.record_exception(error)
    span.end()
