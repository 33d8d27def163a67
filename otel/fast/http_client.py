"""The span of each request that a client session makes, as the aiohttp-client instrumentation makes it."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

from aiohttp import ClientResponse, ClientResponseError, ClientSession
from multidict import CIMultiDict
from opentelemetry import propagate, trace
from opentelemetry.instrumentation import aiohttp_client
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind, StatusCode
from yarl import URL

from otel.fast.http_server import LONGEST_REMEMBERED, MAX_REMEMBERED, plain, standard_propagation
from otel.fast.spans import NO_STATE, LeanSpan, current_context

# As anything: what is used below is not all meant to be.
_client: Any = aiohttp_client


def instrument_session(session: ClientSession) -> None:
    """Do for a session what the package's ``create_trace_config()`` does for traces.

    Each request has a span, one also where it is sent again on a fresh connection, and sends its trace context along.
    An answer of 500 or above leaves the exception event that a failed call leaves anyway; a call that aiohttp refuses
    before it sends anything leaves a failed span, where the package leaves none. Put around the one method
    that all requests go through, because a trace configuration is told of a dozen more things, each with an object
    of its own: that takes 15 µs a request, this 2.
    """
    mode = _client._StabilityMode.DEFAULT
    tracer = trace.get_tracer(aiohttp_client.__name__, _client.__version__, schema_url=_client._get_schema_url(mode))
    standard = standard_propagation()
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
        alone = plain(current_context())
        if not (alone or is_http_instrumentation_enabled()):
            return await request(method, url, **kwargs)
        short = len(target.raw_path) + len(target.raw_query_string) <= LONGEST_REMEMBERED
        known = (described if short else described.__wrapped__)(method.upper(), target)
        if known is None:
            return await request(method, url, **kwargs)
        name, attributes = known
        given = kwargs.pop("headers", None)
        headers: MutableMapping[str, str] = CIMultiDict(given) if given else {}
        span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        if standard and alone and type(span) is LeanSpan and span.trace_state is NO_STATE:
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
