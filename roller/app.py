"""The dice-roller's application, composed from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from otel import metrics
from roller import routes, telemetry
from roller.catalogue import BUILTIN, BuiltinCatalogue, RemoteCatalogue
from roller.dice import Roller
from roller.settings import Settings
from web import defects, health
from web.application import add_common_routes, new_application
from web.client import CLIENT_SESSION, client_session


def create_app(settings: Settings) -> web.Application:
    app = new_application()
    registry = metrics.new_registry()
    remote = settings.die_service
    dice = [] if remote else [die.name for die in BUILTIN]

    roller = app[routes.ROLLER] = Roller(settings.max_delay, settings.seed, settings.blocking_wait)
    switches: dict[str, defects.Switch] = {"blocking": roller.block, "weights": roller.weight, "slow": roller.slow}
    app[routes.ROLLS] = telemetry.RollTelemetry(registry, dice)
    app.router.add_get("/roll", routes.roll, allow_head=False)
    if settings.async_rolls:
        app[routes.BATCHES] = telemetry.BatchTelemetry(registry, app[routes.ROLLS], dice)
        app.router.add_get("/roll-async", routes.roll_async(settings.max_rolls), allow_head=False)

    readiness: health.Readiness = health.always_ready
    if remote is None:
        app[routes.CATALOGUE] = BuiltinCatalogue()
    else:
        app[routes.DIE_SERVICE] = telemetry.DieServiceTelemetry(registry)
        catalogue = app[routes.CATALOGUE] = RemoteCatalogue(
            lambda: app[CLIENT_SESSION], remote.url, remote.connections, app[routes.DIE_SERVICE]
        )
        switches["retry_storm"] = catalogue.retry_storm
        app.cleanup_ctx.append(client_session(remote.connect_timeout, remote.timeout, remote.connections))
        readiness = health.dependency(lambda: app[CLIENT_SESSION], "die-service", remote.url)

    async def log_start(app: web.Application) -> AsyncIterator[None]:
        telemetry.started(settings.server.port)
        yield

    app.cleanup_ctx.append(log_start)
    app.cleanup_ctx.append(defects.listen(settings.server.defects_socket, switches))
    add_common_routes(
        app,
        registry,
        title="dice-roller",
        description="Rolls dice, one by one or many at once.",
        readiness=readiness,
        workers_dir=settings.server.workers_dir,
    )
    return app
