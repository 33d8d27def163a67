"""The proxy that delays responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lab.chaos.proxy import Proxy


@asynccontextmanager
async def echo() -> AsyncIterator[Proxy]:
    """A proxy in front of an echo server."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname())
    try:
        yield proxy
    finally:
        await proxy.close()
        server.close()


async def test_the_proxy_delays_responses_until_the_delay_ends() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(*(await proxy.open()).split(":"))
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.delay = 30
        writer.write(b"two")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(3), 0.1)
        proxy.delay = 0
        assert await asyncio.wait_for(reader.readexactly(3), 10) == b"two"
        await proxy.close()
        assert await reader.read() == b""
        writer.close()


async def test_the_proxy_closes_when_the_server_closes() -> None:
    async with echo() as proxy:
        reader, writer = await asyncio.open_connection(*(await proxy.open()).split(":"))
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    proxy = Proxy(("127.0.0.1", 1))
    reader, writer = await asyncio.open_connection(*(await proxy.open()).split(":"))
    assert await reader.read() == b""
    writer.close()
    await proxy.close()
