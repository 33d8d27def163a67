"""The dice-roller and the die-service without telemetry: the same handlers, the same calls, the same queries.

``python -m bench.reference roller`` reads the same settings as ``python -m roller``. Null objects replace the telemetry
objects, and the only middleware is the one that turns errors into responses.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

import dieservice.routes
import dieservice.settings
import roller.routes
import roller.settings
from dieservice.postgres import PostgresCatalogue
from roller.catalogue import RemoteCatalogue
from roller.dice import Roller
from web import health, problems, security_headers
from web.connection import Runner
from web.hosts import AllowedHosts
from web.settings import EVENT_LOOPS, Environment, ServerSettings
from web.tuning import backlog


class NullTelemetry:
    """A null object: every attribute and every call returns the object itself."""

    def __getattr__(self, name: str) -> NullTelemetry:
        return self

    def __call__(self, *_: Any, **__: Any) -> NullTelemetry:
        return self

    def __enter__(self) -> NullTelemetry:
        return self

    def __exit__(self, *_: object) -> None:
        return None


NULL_TELEMETRY: Any = NullTelemetry()


class Rolls(NullTelemetry):
    """A null object that counts single rolls: ``dicelab bench scale`` reads that count from ``/metrics``."""

    def __init__(self) -> None:
        self._count = 0

    def completed(self, *_: object) -> None:
        self._count += 1

    async def metrics(self, request: web.Request) -> web.Response:
        text = f'# TYPE roll_requests counter\nroll_requests_total{{outcome="success"}} {self._count}\n# EOF\n'
        return web.Response(text=text)


def new_application() -> web.Application:
    """The application of ``web.application``, without the middleware that counts, times and logs requests."""
    app = web.Application(middlewares=[problems.middleware()])
    app.on_response_prepare.append(security_headers.add)
    return app


def roller_app(settings: roller.settings.Settings) -> web.Application:
    app = new_application()
    remote = settings.die_service
    assert remote is not None, "the reference needs a die-service"
    session = web.AppKey("session", ClientSession)

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=TCPConnector(limit=remote.connections),
            timeout=ClientTimeout(total=remote.timeout, connect=remote.connect_timeout),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        ) as app[session]:
            yield

    app.cleanup_ctx.append(sessions)
    app[roller.routes.ROLLER] = Roller(settings.max_delay, settings.seed)
    app[roller.routes.CATALOGUE] = RemoteCatalogue(lambda: app[session], remote.url, remote.connections, NULL_TELEMETRY)
    rolls: Any = Rolls()
    app[roller.routes.ROLLS] = rolls
    app[roller.routes.BATCHES] = app[roller.routes.DIE_SERVICE] = NULL_TELEMETRY
    app.router.add_get("/metrics", rolls.metrics, allow_head=False)
    app.router.add_get("/roll", roller.routes.roll, allow_head=False)
    app.router.add_get("/roll-async", roller.routes.roll_async(settings.max_rolls), allow_head=False)
    app[health.READINESS] = health.dependency(lambda: app[session], "die-service", remote.url)
    return app


def die_service_app(settings: dieservice.settings.Settings) -> web.Application:
    app = new_application()
    assert settings.database is not None, "the reference needs a database"
    catalogue = PostgresCatalogue(settings.database, settings.dice, NULL_TELEMETRY, NULL_TELEMETRY)

    async def connected(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(catalogue.keep_connected())
        yield
        task.cancel()
        await asyncio.wait([task], timeout=1)

    async def ready() -> str | None:
        return None if catalogue.connected else "the database is unavailable"

    app.cleanup_ctx.append(connected)
    app[dieservice.routes.CATALOGUE] = catalogue
    app[dieservice.routes.DICE] = NULL_TELEMETRY
    app.router.add_get("/dice", dieservice.routes.dice, allow_head=False)
    app[health.READINESS] = ready
    return app


def main(which: str) -> None:
    env = Environment(os.environ)
    if which == "roller":
        roller_settings = roller.settings.Settings.read(env)
        app, server = roller_app(roller_settings), roller_settings.server
    else:
        die_service_settings = dieservice.settings.Settings.read(env)
        app, server = die_service_app(die_service_settings), die_service_settings.server
    app[health.STOPPING] = asyncio.Event()
    app.router.add_get("/readyz", health.readyz, allow_head=False)
    with asyncio.Runner(loop_factory=EVENT_LOOPS[server.event_loop]) as runner:
        runner.run(serve(app, server))


async def serve(app: web.Application, settings: ServerSettings) -> None:
    """Serve as ``web.server`` does, but with Python's default thresholds for garbage collection."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    runner = Runner(app, AllowedHosts([]), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port, backlog=backlog(settings)).start()
    await stopping.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
