"""The frontend's application, composed from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from frontend import routes, telemetry
from frontend.backend import BUILTIN_DICE, Backend
from frontend.browser.render import load_templates
from frontend.explorer import sources
from frontend.page import page_function
from frontend.panel_server import PanelServer
from frontend.settings import Settings
from frontend.threads import fields_on_loop, on_loop
from frontend.usage import Sessions
from otel import metrics
from web import defects, health
from web.application import add_common_routes, new_application
from web.client import CLIENT_SESSION, client_session
from web.problems import ERROR_PAGE

# Seconds that the page has to show the last rolls before its connection closes.
CLOSE_DELAY = 0.1
TEMPLATES = Path(__file__).parent / "templates"


def create_app(settings: Settings) -> web.Application:
    app = new_application()
    registry = metrics.new_registry()
    dice = [] if settings.die_service_url else list(BUILTIN_DICE)
    sessions = Sessions(settings.session_secret, settings.sessions_file) if settings.sign_in else None

    backend = app[routes.BACKEND] = Backend(
        lambda: app[CLIENT_SESSION],
        settings,
        telemetry.FrontendTelemetry(registry, dice, settings.max_rolls if settings.async_rolls else None),
        sessions,
    )
    telemetry_sources = sources.choose(lambda: app[CLIENT_SESSION], settings)
    app[ERROR_PAGE] = routes.error_page

    async def disconnect_browsers(app: web.Application) -> None:
        await backend.drain(settings.server.shutdown_timeout)
        await asyncio.sleep(CLOSE_DELAY)
        await app[routes.PANEL].disconnect()

    app.on_shutdown.append(disconnect_browsers)

    app.router.add_get("/", routes.page, allow_head=False)
    app.router.add_get("/ws", routes.websocket, allow_head=False)
    app.router.add_get("/static/{path:.+}", routes.static, allow_head=False)
    app.router.add_get("/roll", routes.roll, allow_head=False)
    if settings.async_rolls:
        app.router.add_get("/roll-async", routes.roll_async(settings.max_rolls), allow_head=False)
    if sessions is not None:
        app[routes.SESSIONS] = sessions
        app.router.add_get("/sign-in", routes.sign_in_page, allow_head=False)
        app.router.add_post("/sign-in", routes.sign_in)
        app.router.add_post("/sign-out", routes.sign_out)

    async def serve_panel(app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        # The page runs in Panel's thread; the backend and the sources that it calls stay on this loop.
        page = page_function(
            on_loop(backend, loop),
            settings.async_rolls,
            settings.max_rolls,
            sessions,
            fields_on_loop(telemetry_sources, loop),
        )
        panel = app[routes.PANEL] = PanelServer(page, settings.max_pages)
        async with panel.running():
            telemetry.started(settings.server.port)
            preparing = asyncio.create_task(asyncio.to_thread(load_templates))
            yield
            await preparing
        await telemetry_sources.close()

    app.cleanup_ctx.append(client_session(settings.connect_timeout, settings.timeout, settings.connections))
    app.cleanup_ctx.append(serve_panel)
    app.cleanup_ctx.append(defects.listen(settings.server.defects_socket))
    add_common_routes(
        app,
        registry,
        title="frontend",
        description="The page's JSON API.",
        readiness=health.dependency(lambda: app[CLIENT_SESSION], "dice-roller", settings.roller_url),
        templates=[TEMPLATES],
    )
    return app
