"""What all services' applications share: middlewares, metrics, health checks and API documents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from otel import http
from web import apidocs, health, problems, runtime_metrics, security_headers
from web.workers import Workers

TEMPLATES = Path(__file__).parent / "templates"


def new_application() -> web.Application:
    """An application with the middlewares in the only correct order, outermost first.

    The server span (added in front of these by the instrumentation) → the request's count, duration and
    access line → errors to problem responses → the handler.
    """
    app = web.Application(middlewares=[http.middleware(), problems.middleware()])
    app.on_response_prepare.append(security_headers.add)
    return app


def add_common_routes(
    app: web.Application,
    registry: CollectorRegistry,
    *,
    title: str,
    description: str,
    readiness: health.Readiness = health.always_ready,
    templates: Sequence[Path] = (),
    workers_dir: Path | None = None,
) -> None:
    """Add metrics, health, API documents and a front page. Call it after adding the service's routes."""
    app[health.READINESS] = readiness
    app[health.STOPPING] = asyncio.Event()
    siblings: Workers | None = None
    if workers_dir is not None:
        siblings = Workers(workers_dir, title, registry)
        app.cleanup_ctx.append(siblings.run)
    if not any(resource.canonical == "/" for resource in app.router.resources()):
        app.router.add_get("/", apidocs.front_page, allow_head=False)
    app.router.add_get("/metrics", _metrics(registry, siblings))
    app.router.add_get("/healthz", health.healthz)
    app.router.add_get("/readyz", health.readyz)
    app.router.add_get("/openapi.json", apidocs.openapi, allow_head=False)
    app.router.add_get("/docs", apidocs.docs, allow_head=False)
    app[apidocs.DOCUMENT] = apidocs.document(app, title, description)
    aiohttp_jinja2.setup(app, loader=jinja2.FileSystemLoader([*templates, TEMPLATES]), autoescape=True)
    http.observe_requests(app, registry, apidocs.expected_statuses)
    runtime_metrics.add(app, registry)


def _metrics(registry: CollectorRegistry, workers: Workers | None) -> Handler:
    expose = make_aiohttp_handler(registry)

    async def metrics(request: web.Request) -> web.StreamResponse:
        handler = expose if workers is None else make_aiohttp_handler(await workers.collect_all())
        try:
            return await handler(request)
        except (TypeError, ValueError) as error:  # an Accept header that names no version of the format
            raise problems.bad_request("The Accept header names no format that metrics are available in.") from error

    return metrics
