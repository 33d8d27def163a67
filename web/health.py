"""Liveness and readiness: ``/healthz`` responds while the process runs, ``/readyz`` while it can serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from yarl import URL

from web.problems import unavailable

# Returns what is missing, as a clause, or None when the service can serve.
Readiness = Callable[[], Awaitable[str | None]]
READINESS = web.AppKey("readiness", Readiness)  # type: ignore[arg-type, var-annotated]
STOPPING = web.AppKey("stopping", asyncio.Event)

PROBE_TIMEOUT = 1.5  # seconds to wait for a dependency's /readyz


async def always_ready() -> str | None:
    return None


def dependency(session: Callable[[], ClientSession], name: str, base: URL) -> Readiness:
    """The readiness of a service that this one depends on, from its own ``/readyz``."""

    async def ask() -> str | None:
        try:
            with suppress_http_instrumentation():
                async with session().get(base / "readyz", timeout=ClientTimeout(total=PROBE_TIMEOUT)) as response:
                    return None if response.status == 200 else f"{name} is not ready"
        except (ClientError, asyncio.TimeoutError):
            return f"{name} does not answer"

    return ask


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "alive"})


async def readyz(request: web.Request) -> web.Response:
    missing = "the service is stopping" if request.app[STOPPING].is_set() else await request.app[READINESS]()
    if missing:
        raise unavailable(f"Not ready: {missing}.")
    return web.Response(body=orjson.dumps({"status": "ready"}), content_type="application/json")
