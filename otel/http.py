"""The telemetry of every HTTP request: a count, a duration, an access line, and the trace id in the response."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from time import perf_counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry

from otel import logs, metrics, traces

_line = logs.events(__name__)

# Requested by machines every few seconds: neither counted, traced nor logged.
UNOBSERVED = frozenset({"/metrics", "/healthz", "/readyz"})
TRACE_ID_HEADER = "X-Trace-Id"
CLIENT_CLOSED_REQUEST = 499  # nginx's code for a client that disconnected before the response
MAX_LOGGED_TARGET = 512

# From 0.1 ms, the time of a query or of a response from memory, to 10 s.
DURATION_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0,
)  # fmt: skip

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "_OTHER"
UNMATCHED = "unmatched"


# By the conventions that OTEL_SEMCONV_STABILITY_OPT_IN chooses: the stable ones, both, or the older ones.
_CONVENTIONS = {part.strip() for part in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")}
_STATUS_NAMES = [
    *(["http.status_code"] if "http/dup" in _CONVENTIONS or "http" not in _CONVENTIONS else []),
    *(["http.response.status_code"] if _CONVENTIONS & {"http", "http/dup"} else []),
]


class HttpMetrics:
    """Counts requests and their durations by route template, method and status.

    Label values are bounded: ``handler`` is a template of a route or ``unmatched``, ``method`` one of
    HTTP's own or ``_OTHER``.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = metrics.Counter(
            "http_requests_total",
            "HTTP requests completed, by route template, method and exact status code.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._duration = metrics.Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's arrival to its response, by route template and method.",
            ["handler", "method"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )

    def expect(self, handler: str, method: str, statuses: Iterable[int]) -> None:
        """Create the series of a route at zero: increase() misses the first increment of a new series."""
        for status in statuses:
            self._requests.labels(handler, method, str(status))
        self._duration.labels(handler, method)

    def count_response(self, handler: str, method: str, status: int, seconds: float | None) -> None:
        """Count one response. ``seconds`` is ``None`` if the duration is meaningless (an upgraded connection)."""
        if method not in METHODS:
            method = OTHER_METHOD
        self._requests.labels(handler, method, str(status)).inc()
        if seconds is not None:
            self._duration.labels(handler, method).observe(seconds, metrics.exemplar())


HTTP_METRICS = web.AppKey("http_metrics", HttpMetrics)


def observe_requests(
    app: web.Application, registry: CollectorRegistry, expected: Callable[[web.AbstractRoute], Iterable[int]]
) -> None:
    """Register the HTTP metrics and create the series of each route with its ``expected`` statuses."""
    http_metrics = app[HTTP_METRICS] = HttpMetrics(registry)
    for resource in app.router.resources():
        for route in resource:
            if resource.canonical not in UNOBSERVED:
                http_metrics.expect(resource.canonical, route.method, expected(route))


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
            record_response(request, raised.status, perf_counter() - started)
            raise
        except asyncio.CancelledError:
            record_response(request, CLIENT_CLOSED_REQUEST, perf_counter() - started)
            set_status(CLIENT_CLOSED_REQUEST)
            raise
        trace_id, _ = traces.current_ids()
        if trace_id and not response.prepared:
            response.headers[TRACE_ID_HEADER] = trace_id
        record_response(request, response.status, perf_counter() - started)
        return response

    return observe


def record_response(request: web.Request, status: int, seconds: float) -> None:
    """Count and log one response."""
    upgraded = status == 101
    request.app[HTTP_METRICS].count_response(_template(request), request.method, status, None if upgraded else seconds)
    log_access(request.method, request.path_qs, status, seconds)


def record_unread(app: web.Application, status: int) -> None:
    """Count and log the response to a request that could not be parsed."""
    app[HTTP_METRICS].count_response(UNMATCHED, OTHER_METHOD, status, None)
    log_access(OTHER_METHOD, "", status, 0.0)


def log_access(method: str, target: str, status: int, seconds: float) -> None:
    target = target[:MAX_LOGGED_TARGET]
    _line(
        logging.INFO,
        f"{method} {target} {status}",
        http_method=method,
        http_target=target,
        http_status=status,
        duration_ms=round(seconds * 1000, 3),
    )


def set_status(status: int) -> None:
    """Set the HTTP status of the current span, for responses that the instrumentation does not see."""
    for name in _STATUS_NAMES:
        traces.set_attribute(name, status)


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    if resource is not None:
        return resource.canonical
    # A known route requested with another method: aiohttp returns 405 and drops the resource.
    for resource in request.app.router.resources():
        if resource.canonical == request.path:
            return resource.canonical
    return UNMATCHED
