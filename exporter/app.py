"""The exporter's routes: ``/metrics``, ``/probe`` and ``/readyz``.

https://prometheus.io/docs/instrumenting/writing_exporters/
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from aiohttp import ClientSession, web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from exporter.collectors import DiceTable, RunDirectory
from exporter.probes import MODULES, probe
from exporter.settings import Settings
from web.hosts import AllowedHosts
from web.origin import is_foreign

T = TypeVar("T")
SERVICE = "exporter"
# Prometheus says how long it waits; the answer has to arrive a little earlier.
SCRAPE_TIMEOUT = "X-Prometheus-Scrape-Timeout-Seconds"
MARGIN = 0.5  # seconds

SETTINGS = web.AppKey("settings", Settings)
REGISTRY = web.AppKey("registry", CollectorRegistry)
SESSION = web.AppKey("session", ClientSession)
HOSTS = web.AppKey("hosts", AllowedHosts)


def create_app(settings: Settings) -> web.Application:
    app = web.Application(middlewares=[refuse_foreign_hosts])
    app[SETTINGS] = settings
    app[HOSTS] = AllowedHosts([SERVICE, *settings.allowed_hosts])
    app[REGISTRY] = CollectorRegistry()
    if settings.database_url:
        app[REGISTRY].register(DiceTable(settings.database_url))
    if settings.run_dir is not None:
        app[REGISTRY].register(RunDirectory(settings.run_dir))
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/probe", probe_target)
    app.router.add_get("/readyz", ready)
    app.cleanup_ctx.append(_session)
    return app


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(headers={"User-Agent": "dicelab-exporter"}) as session:
        app[SESSION] = session
        yield


@web.middleware
async def refuse_foreign_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign hosts with 421 (DNS rebinding)."""
    try:
        known = "Host" not in request.headers or request.url.host in request.app[HOSTS]
    except ValueError:
        raise web.HTTPBadRequest(text="the Host header makes no sense\n") from None
    if not known:
        raise web.HTTPMisdirectedRequest(text=f"there is no exporter at {request.host[:256]}; see ALLOWED_HOSTS\n")
    return await handler(request)


async def ready(request: web.Request) -> web.Response:
    """Ready even while the database is away: that is what it is there to report."""
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    return await _page(request, request.app[REGISTRY])


async def probe_target(request: web.Request) -> web.Response:
    """Probe one of the allowed targets: ``/probe?target=frontend&module=roll``."""
    if is_foreign(request):
        raise web.HTTPForbidden(text="this is for Prometheus, not for another site's page\n")
    settings = request.app[SETTINGS]
    # Any other address would make the exporter send requests for whoever reaches it.
    target = _one_of(settings.targets, request, "target")
    module = _one_of(MODULES, request, "module")
    timeout = min(settings.probe_timeout, _scrape_timeout(request))
    result = await probe(request.app[SESSION], module, target, timeout)
    return await _page(request, result.registry())


def _one_of(choices: Mapping[str, T], request: web.Request, name: str) -> T:
    """The choice that a parameter names."""
    value = request.query.getall(name, [])
    if len(value) != 1 or value[0] not in choices:
        known = ", ".join(sorted(choices)) or "nothing: PROBE_TARGETS is empty"
        raise web.HTTPBadRequest(text=f"{name} must be one of {known}\n")
    return choices[value[0]]


def _scrape_timeout(request: web.Request) -> float:
    """How long the probe may take, in seconds, by the scraper's header."""
    try:
        return max(float(request.headers.get(SCRAPE_TIMEOUT, "inf")) - MARGIN, 0.1)
    except ValueError:
        raise web.HTTPBadRequest(text=f"{SCRAPE_TIMEOUT} must be a number of seconds\n") from None


async def _page(request: web.Request, registry: CollectorRegistry) -> web.Response:
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    # In a thread: collectors wait for the database and the disk.
    body = await asyncio.to_thread(encode, registry)
    return web.Response(body=body, headers={"Content-Type": content_type})
