"""The client session's connections."""

from __future__ import annotations

import asyncio

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from web.client import MostRecentFirstConnector


async def test_the_last_released_connection_is_reused_first() -> None:
    crowd = asyncio.Barrier(5)

    async def port(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.Response(text=str(request.transport.get_extra_info("peername")[1]))

    async def together(request: web.Request) -> web.Response:
        await crowd.wait()
        return await port(request)

    app = web.Application()
    app.add_routes([web.get("/alone", port), web.get("/together", together)])
    async with TestServer(app) as server, ClientSession(connector=MostRecentFirstConnector(limit=10)) as session:

        async def ask(path: str) -> str:
            async with session.get(server.make_url(path)) as answer:
                return await answer.text()

        assert len(set(await asyncio.gather(*(ask("/together") for _ in range(5))))) == 5
        assert len({await ask("/alone") for _ in range(5)}) == 1
