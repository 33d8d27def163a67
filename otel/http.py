"""What every HTTP request leaves behind: a count, a duration, an access line and its trace id."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from otel import logs
from otel.metrics import OTHER_METHOD, UNMATCHED, HttpMetrics
from otel.tracing import current_trace_id

log = logging.getLogger(__name__)

# Asked by machines every few seconds: neither counted, traced nor logged.
UNOBSERVED = frozenset({"/metrics", "/healthz", "/readyz"})
TRACE_ID_HEADER = "X-Trace-Id"
CLIENT_CLOSED_REQUEST = 499  # nginx's code for a client that went away before its answer
MAX_LOGGED_TARGET = 512

HTTP_METRICS = web.AppKey("http_metrics", HttpMetrics)


def observe_requests(app: web.Application, registry: CollectorRegistry) -> None:
    """Register the HTTP metrics and make the series of each of the application's routes exist."""
    metrics = app[HTTP_METRICS] = HttpMetrics(registry)
    for resource in app.router.resources():
        for route in resource:
            if resource.canonical not in UNOBSERVED:
                metrics.expect(resource.canonical, route.method)


def middleware() -> Middleware:
    """Count, time and log each request but those of :data:`UNOBSERVED`; runs inside the server span."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in UNOBSERVED:
            return await handler(request)
        started = perf_counter()
        try:
            response = await handler(request)
        except web.HTTPException as raised:
            answered(request, raised.status, perf_counter() - started)
            raise
        except asyncio.CancelledError:
            answered(request, CLIENT_CLOSED_REQUEST, perf_counter() - started)
            trace.get_current_span().set_attribute("http.status_code", CLIENT_CLOSED_REQUEST)
            raise
        trace_id = current_trace_id()
        if trace_id and not response.prepared:
            response.headers[TRACE_ID_HEADER] = trace_id
        answered(request, response.status, perf_counter() - started)
        return response

    return observe


def answered(request: web.Request, status: int, seconds: float) -> None:
    """Count and log one answer."""
    upgraded = status == 101
    request.app[HTTP_METRICS].answered(_template(request), request.method, status, None if upgraded else seconds)
    log_access(request.method, request.path_qs, status, seconds)


def answered_unread(app: web.Application, status: int) -> None:
    """Count and log the answer to something that could not be read as an HTTP request."""
    app[HTTP_METRICS].answered(UNMATCHED, OTHER_METHOD, status, None)
    log_access(OTHER_METHOD, "", status, 0.0)


def log_access(method: str, target: str, status: int, seconds: float) -> None:
    target = target[:MAX_LOGGED_TARGET]
    logs.event(
        log,
        logging.INFO,
        f"{method} {target} {status}",
        http_method=method,
        http_target=target,
        http_status=status,
        duration_ms=round(seconds * 1000, 3),
    )


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    if resource is not None:
        return resource.canonical
    # The path of a known route asked with another method: aiohttp answers 405 and forgets the resource.
    for resource in request.app.router.resources():
        if resource.canonical == request.path:
            return resource.canonical
    return UNMATCHED
