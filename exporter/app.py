"""The exporter's routes: ``/metrics``, ``/probe`` and ``/readyz``.

https://prometheus.io/docs/instrumenting/writing_exporters/
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from exporter.collectors import DiceTable, RunDirectory
from exporter.probes import MODULES, probe
from exporter.settings import Settings
from web.hosts import AllowedHosts, refuse_foreign_hosts
from web.origin import is_foreign

T = TypeVar("T")
SERVICE = "exporter"
# The header in which Prometheus sends its time-out.
SCRAPE_TIMEOUT = "X-Prometheus-Scrape-Timeout-Seconds"
MARGIN = 0.5  # seconds by which the response must come earlier than that

SETTINGS = web.AppKey("settings", Settings)
REGISTRY = web.AppKey("registry", CollectorRegistry)
SESSION = web.AppKey("session", ClientSession)


def create_app(settings: Settings) -> web.Application:
    hosts = AllowedHosts([SERVICE, *settings.allowed_hosts])
    app = web.Application(middlewares=[refuse_foreign_hosts(hosts, SERVICE)])
    app[SETTINGS] = settings
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
    # A new connection for each probe: a reused one would succeed even if nobody else could connect.
    async with ClientSession(
        connector=TCPConnector(force_close=True),
        cookie_jar=DummyCookieJar(),
        headers={"User-Agent": "dicelab-exporter"},
    ) as session:
        app[SESSION] = session
        yield


async def ready(request: web.Request) -> web.Response:
    """Ready even if the database is down: the exporter has to report that."""
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    # In a thread: the collectors block on the database and the disk.
    return await asyncio.to_thread(_page, request, request.app[REGISTRY])


async def probe_target(request: web.Request) -> web.Response:
    """Probe one of the allowed targets: ``/probe?target=frontend&module=roll``."""
    if is_foreign(request):
        raise web.HTTPForbidden(text="this is for Prometheus, not for another site's page\n")
    settings = request.app[SETTINGS]
    # Allowed targets only: else anyone who reaches the exporter could make it send requests to any address.
    target = _one_of(settings.targets, request, "target")
    module = _one_of(MODULES, request, "module")
    timeout = min(settings.probe_timeout, _scrape_timeout(request))
    result = await probe(request.app[SESSION], module, target, timeout)
    return _page(request, result.registry())


def _one_of(choices: Mapping[str, T], request: web.Request, name: str) -> T:
    """The value of a query parameter, which must be the name of one of the choices."""
    value = request.query.getall(name, [])
    if len(value) != 1 or value[0] not in choices:
        known = ", ".join(sorted(choices)) or "nothing: PROBE_TARGETS is empty"
        raise web.HTTPBadRequest(text=f"{name} must be one of {known}\n")
    return choices[value[0]]


def _scrape_timeout(request: web.Request) -> float:
    """How long the probe may take, in seconds, according to Prometheus's header; infinite without it."""
    try:
        seconds = float(request.headers.get(SCRAPE_TIMEOUT, "inf"))
    except ValueError:
        seconds = math.nan
    if not seconds > 0:  # NaN too
        raise web.HTTPBadRequest(text=f"{SCRAPE_TIMEOUT} must be a positive number of seconds\n")
    return max(seconds - MARGIN, 0.1)


def _page(request: web.Request, registry: CollectorRegistry) -> web.Response:
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(registry), headers={"Content-Type": content_type})
