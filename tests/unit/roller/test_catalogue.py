from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry
from pytest_aiohttp.plugin import AiohttpServer
from yarl import URL

from roller.catalogue import CatalogueTimeout, RemoteCatalogue, UnknownDie
from roller.telemetry import FAILURES, DieServiceTelemetry


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def test_invalid_names_from_the_die_service_are_dropped(
    aiohttp_server: AiohttpServer, session: ClientSession
) -> None:
    async def dice(request: web.Request) -> web.Response:
        known = ["fair", "ev\u202eil", "x" * 65, "new\nline", "", 7]
        return web.json_response({"known": known}, status=404)

    app = web.Application()
    app.router.add_get("/dice", dice)
    server = await aiohttp_server(app)
    telemetry = DieServiceTelemetry(CollectorRegistry())
    catalogue = RemoteCatalogue(lambda: session, server.make_url("/"), 10, telemetry)
    with pytest.raises(UnknownDie) as unknown:
        await catalogue.find("loaded")
    assert unknown.value.known == ["fair"]


@pytest.mark.parametrize("status", ["timeout", "connection_error"])
async def test_attempts_of_a_retry_storm_are_counted_by_their_outcome(
    aiohttp_server: AiohttpServer, session: ClientSession, status: str
) -> None:
    async def dice(request: web.Request) -> web.Response:
        await asyncio.sleep(10)
        return web.Response()

    app = web.Application()
    app.router.add_get("/dice", dice)
    server = await aiohttp_server(app, shutdown_timeout=0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = URL(f"http://127.0.0.1:{closed.getsockname()[1]}")
    registry = CollectorRegistry()
    url = server.make_url("/") if status == "timeout" else nobody
    catalogue = RemoteCatalogue(lambda: session, url, 10, DieServiceTelemetry(registry))
    seconds = 0.05 if status == "timeout" else 10
    catalogue.retry_storm({"share": 1.0, "seconds": seconds, "attempts": 3})
    with pytest.raises(CatalogueTimeout):
        await catalogue.find("fair")
    counted = {
        sample.labels["status"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "die_service_requests_total" and sample.value
    }
    assert counted == {status: 3}


def test_each_failure_status_starts_at_zero() -> None:
    registry = CollectorRegistry()
    telemetry = DieServiceTelemetry(registry)

    def counts() -> dict[tuple[str, str], float]:
        return {
            (sample.labels["identifier"], sample.labels["status"]): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "die_service_requests_total"
        }

    assert set(FAILURES) == {"404", "503", "504", "timeout", "connection_error"}
    assert counts() == {("unknown", status): 0 for status in FAILURES}
    telemetry.found("fair", 0.001)
    after = counts()
    assert {key: value for key, value in after.items() if value} == {("fair", "200"): 1}
    assert {status for identifier, status in after if identifier == "fair"} == {"200", *FAILURES}
    telemetry.failed("fair", 503, 0.001)
    assert counts().keys() == after.keys()
    assert counts()["fair", "503"] == 1
