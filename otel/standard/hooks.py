"""What the instrumentation of aiohttp's client leaves out of a span."""

from __future__ import annotations

from aiohttp import ClientResponseError, TraceRequestEndParams, TraceRequestExceptionParams
from opentelemetry.trace import Span


def record_server_error(span: Span, params: TraceRequestEndParams | TraceRequestExceptionParams) -> None:
    """Add to the span of an answer of 500 and above the exception event that a request without answer has."""
    if isinstance(params, TraceRequestEndParams) and params.response.status >= 500:
        answer = params.response
        message = answer.reason or "server error"
        span.record_exception(ClientResponseError(answer.request_info, (), status=answer.status, message=message))
