"""The containers' health check, as the container runs it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from lab.paths import ROOT


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=request.app[STATUS][0])

    app = web.Application()
    app[STATUS] = [200]
    app.router.add_get("/readyz", ready)
    server = TestServer(app)
    async with server:
        yield server


STATUS = web.AppKey("status", list[int])


async def run(port: int | None) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "web.probe"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PORT": str(port)},
        capture_output=True,
        text=True,
    )


async def test_a_ready_service_is_healthy(server: TestServer) -> None:
    done = await run(server.port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_service_that_is_not_ready_is_unhealthy(server: TestServer) -> None:
    server.app[STATUS][0] = 503
    done = await run(server.port)
    assert done.returncode == 1
    assert done.stderr == "/readyz answers 'HTTP/1.0 503 Service Unavailable'\n"


async def test_a_service_that_does_not_listen_is_unhealthy() -> None:
    done = await run(unused_port())
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
