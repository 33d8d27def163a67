"""The die-service's application, composed from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from dieservice import routes
from dieservice.catalogue import FileCatalogue
from dieservice.connections import cancel
from dieservice.postgres import PostgresCatalogue
from dieservice.settings import Settings
from dieservice.telemetry import DatabaseTelemetry, DiceTelemetry
from otel import metrics
from web import defects, health
from web.application import add_common_routes, new_application


def create_app(settings: Settings) -> web.Application:
    app = new_application()
    registry = metrics.new_registry()
    dice = settings.dice
    telemetry = app[routes.DICE] = DiceTelemetry(registry)
    app.router.add_get("/dice", routes.dice, allow_head=False)

    readiness: health.Readiness = health.always_ready
    switches: dict[str, defects.Switch] = {}
    if settings.database is None:
        app[routes.CATALOGUE] = FileCatalogue(dice)
        telemetry.loaded([die.identifier for die in dice])
    else:
        catalogue = PostgresCatalogue(settings.database, dice, telemetry, DatabaseTelemetry(registry))
        app[routes.CATALOGUE] = catalogue
        app.cleanup_ctx.append(_keep_connected(catalogue))
        switches = {"leak": catalogue.leak, "pool_size": catalogue.resize}

        async def database_ready() -> str | None:
            return None if catalogue.connected else "the database is unavailable"

        readiness = database_ready

    async def log_start(app: web.Application) -> AsyncIterator[None]:
        telemetry.started(settings.server.port, len(dice))
        yield

    app.cleanup_ctx.append(log_start)
    app.cleanup_ctx.append(defects.listen(settings.server.defects_socket, switches))
    add_common_routes(
        app,
        registry,
        title="die-service",
        description="Keeps the catalogue of dice.",
        readiness=readiness,
        workers_dir=settings.server.workers_dir,
    )
    return app


def _keep_connected(catalogue: PostgresCatalogue) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(catalogue.keep_connected())
        yield
        await cancel(task)

    return run
