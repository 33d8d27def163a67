"""The exception event that the instrumentation of aiohttp's client leaves out."""

from __future__ import annotations

from aiohttp import ClientResponseError, TraceRequestEndParams, TraceRequestExceptionParams
from opentelemetry.trace import Span


def record_server_error(span: Span, params: TraceRequestEndParams | TraceRequestExceptionParams) -> None:
    """Add an exception event to the span if the response is 500 or above, as a span without a response has one."""
    if isinstance(params, TraceRequestEndParams) and params.response.status >= 500:
        response = params.response
        message = response.reason or "server error"
        span.record_exception(ClientResponseError(response.request_info, (), status=response.status, message=message))
