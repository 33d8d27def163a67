"""The span of each request that a client session makes, as the aiohttp-client instrumentation makes it."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from aiohttp import (
    ClientResponseError,
    ClientSession,
    TraceConfig,
    TraceRequestEndParams,
    TraceRequestExceptionParams,
    TraceRequestStartParams,
)
from opentelemetry import propagate, trace
from opentelemetry.instrumentation import aiohttp_client
from opentelemetry.instrumentation.aiohttp_client.version import __version__
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.http import get_excluded_urls
from yarl import URL

from otel.fast import conventions
from otel.fast.http_server import LONGEST_REMEMBERED, MAX_REMEMBERED, plain, standard_propagation
from otel.fast.spans import NO_STATE, LeanSpan, current_context


def instrument_session(session: ClientSession) -> None:
    """Trace the requests of a session: each has a span and propagates its trace context."""
    config = _trace_config()
    config.freeze()
    session.trace_configs.append(config)


def _trace_config() -> TraceConfig:
    tracer: Any = trace.get_tracer(aiohttp_client.__name__, __version__, schema_url=conventions.HTTP_SCHEMA)
    standard = standard_propagation()
    excluded = get_excluded_urls("AIOHTTP_CLIENT")

    @lru_cache(MAX_REMEMBERED)
    def described(method: str, url: URL) -> tuple[str, dict[str, Any]] | None:
        """The span's name and first attributes, or ``None`` for no span; cached, as a service requests few URLs."""
        text = str(url)
        if excluded.url_disabled(text):
            return None
        return conventions.method_name(method), conventions.of_client(method, text)

    async def on_request_start(_: ClientSession, context: SimpleNamespace, params: TraceRequestStartParams) -> None:
        context.span = None
        method, url, headers = params.method, params.url, params.headers
        alone = plain(current_context())
        if not (alone or is_http_instrumentation_enabled()):
            return
        short = len(url.raw_path) + len(url.raw_query_string) <= LONGEST_REMEMBERED
        known = (described if short else described.__wrapped__)(method, url)
        if known is None:
            return
        name, attributes = known
        span = context.span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        if standard and alone and type(span) is LeanSpan and span.trace_state is NO_STATE:
            headers["traceparent"] = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.flags:02x}"
        else:
            propagate.inject(headers, context=trace.set_span_in_context(span))

    async def on_request_end(_: ClientSession, context: SimpleNamespace, params: TraceRequestEndParams) -> None:
        span = context.span
        if span is None:
            return
        if type(span) is LeanSpan:
            response = params.response
            status = response.status
            conventions.answered(span, status)
            if status >= 500:
                reason = response.reason or "server error"
                span.record_exception(ClientResponseError(response.request_info, (), status=status, message=reason))
            if status >= 400:
                if conventions.NEW_HTTP:
                    span.attributes["error.type"] = str(status)
                span.set_status(StatusCode.ERROR)
        span.end()

    async def on_request_exception(
        _: ClientSession, context: SimpleNamespace, params: TraceRequestExceptionParams
    ) -> None:
        span = context.span
        if span is None:
            return
        if type(span) is LeanSpan:
            kind = type(params.exception).__qualname__
            if conventions.NEW_HTTP:
                span.attributes["error.type"] = kind
            span.set_status(StatusCode.ERROR, kind)
            span.record_exception(params.exception)
        span.end()

    config = TraceConfig()
    config.on_request_start.append(on_request_start)
    config.on_request_end.append(on_request_end)
    config.on_request_exception.append(on_request_exception)
    return config
