"""Metrics of the process, the same for every service: its version, the lag of its event loop, its requests in flight.

``prometheus_client`` adds CPU, memory and descriptors (``process_*``); see ``metrics.new_registry``.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry

from otel import metrics
from otel.http import UNOBSERVED

LAG_INTERVAL = 0.1  # seconds between two measurements of the event loop's lag
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

TRAFFIC_EXPECTED = web.AppKey("traffic_expected", metrics.Gauge)


def add(app: web.Application, registry: CollectorRegistry) -> None:
    """Register the metrics, and measure while the application runs."""
    build = metrics.Gauge(
        "dicelab_build_info",
        "Always 1, for each process: the version of Dice Lab and of Python.",
        ["version", "python_version"],
        registry=registry,
    )
    build.labels(_version(), platform.python_version()).set(1)
    app[TRAFFIC_EXPECTED] = metrics.Gauge(
        "dicelab_traffic_expected",
        "1 if the alert NoTraffic watches this lab (TRAFFIC_EXPECTED), else 0.",
        registry=registry,
    )
    in_flight = metrics.Gauge(
        "http_requests_in_flight",
        "Requests in flight, without those for metrics and health and without open WebSockets.",
        registry=registry,
    )
    lag = metrics.Histogram(
        "event_loop_lag_seconds",
        "How much later than planned the event loop ran a callback, measured ten times a second.",
        buckets=LAG_BUCKETS,
        registry=registry,
    )
    app.middlewares.append(_count_in_flight(in_flight))
    app.cleanup_ctx.append(_measure_lag(lag))


def _version() -> str:
    try:
        return version("dicelab")
    except PackageNotFoundError:  # run from a directory without having been installed
        return "unknown"


def _count_in_flight(in_flight: metrics.Gauge) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in UNOBSERVED or "Upgrade" in request.headers:
            return await handler(request)
        in_flight.inc()
        try:
            return await handler(request)
        finally:
            in_flight.dec()

    return count


def _measure_lag(lag: metrics.Histogram) -> Callable[[web.Application], AsyncIterator[None]]:
    async def measure() -> None:
        loop = asyncio.get_running_loop()
        while True:
            planned = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            lag.observe(max(0.0, loop.time() - planned))

    async def while_running(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(measure())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return while_running
