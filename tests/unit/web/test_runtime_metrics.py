"""The metrics of a process: the lag of its event loop, and its requests in flight."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from web import runtime_metrics
from web.outcomes import RollOutcomes
from web.problems import Problem


async def client_of(
    registry: CollectorRegistry, handler: web.RequestHandler | object
) -> TestClient[web.Request, web.Application]:
    app = web.Application()
    app.router.add_get("/work", handler)  # type: ignore[arg-type]
    runtime_metrics.add(app, registry)
    client = TestClient(TestServer(app))
    await client.start_server()
    return client


async def test_requests_in_flight_are_counted() -> None:
    registry, go_on = CollectorRegistry(), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await go_on.wait()
        raise web.HTTPInternalServerError

    client = await client_of(registry, wait)

    def in_flight() -> float | None:
        return registry.get_sample_value("http_requests_in_flight")

    assert in_flight() == 0
    asking = [asyncio.create_task(client.get("/work")) for _ in range(3)]
    for _ in range(200):
        if in_flight() == 3:
            break
        await asyncio.sleep(0.01)
    assert in_flight() == 3
    go_on.set()
    assert [response.status for response in await asyncio.gather(*asking)] == [500] * 3
    assert in_flight() == 0
    await client.close()


async def test_a_blocking_handler_shows_as_lag() -> None:
    registry = CollectorRegistry()

    async def block(request: web.Request) -> web.Response:
        time.sleep(0.6)  # noqa: ASYNC251  # deliberately
        return web.Response()

    client = await client_of(registry, block)

    def later_than(seconds: str) -> float:
        fast = registry.get_sample_value("event_loop_lag_seconds_bucket", {"le": seconds})
        return (registry.get_sample_value("event_loop_lag_seconds_count") or 0) - (fast or 0)

    await asyncio.sleep(2 * runtime_metrics.LAG_INTERVAL)
    before = later_than("0.25")
    await client.get("/work")
    async with asyncio.timeout(30):
        while later_than("0.25") == before:  # a busy machine may add to it
            await asyncio.sleep(0.05)
    await client.close()


async def test_build_info_has_the_version() -> None:
    registry = CollectorRegistry()
    runtime_metrics.add(web.Application(), registry)
    (sample,) = next(family for family in registry.collect() if family.name == "dicelab_build_info").samples
    assert sample.value == 1
    assert sample.labels["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "success"), (Problem(500, "", kind="roll-failed"), "die_failed"), (Problem(503, ""), "error")],
)
async def test_requests_are_timed_by_outcome(error: Exception | None, outcome: str) -> None:
    registry = CollectorRegistry()
    outcomes = RollOutcomes(registry)
    try:
        with outcomes.request():
            if error:
                raise error
    except Problem:
        pass
    assert registry.get_sample_value("roll_request_duration_seconds_count", {"outcome": outcome}) == 1
    assert registry.get_sample_value("roll_requests_total", {"outcome": outcome}) == 1
