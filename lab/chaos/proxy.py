"""A proxy that delays responses: a slow network between a service and its server."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path

from lab.supervise.private import private_directory

CHUNK = 64 * 1024
# Where a server is: host and port, or the path of its Unix socket.
Address = tuple[str, int] | Path


class Proxy:
    """Forwards connections to a server and delays its responses by ``delay`` seconds.

    Chunks of bytes are delayed as a whole and in order, so a request and its response take ``delay`` longer. Setting
    ``delay`` to 0 forwards delayed chunks at once.

    In front of a TCP server it listens on a loopback port. In front of a Unix socket it listens on a Unix socket of the
    same name in a private directory: the server sees every client as the user who runs the proxy, so no other user may
    connect.
    """

    def __init__(self, server: Address) -> None:
        self._address = server
        self._delay = 0.0
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._directory: Path | None = None  # of the proxy's socket
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen; returns the address: ``host:port``, or the path of the socket."""
        if isinstance(self._address, Path):
            self._directory = private_directory()
            path = self._directory / self._address.name
            self._server = await asyncio.start_unix_server(self._connected, path)
            return str(path)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def delay(self) -> float:
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = seconds
        self._changed.set()
        self._changed = asyncio.Event()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if isinstance(self._address, Path):
                upstream = await asyncio.open_unix_connection(str(self._address))
            else:
                upstream = await asyncio.open_connection(*self._address)
        except OSError:  # the server does not listen
            writer.close()
            self._connections.discard(task)
            return
        pumps = [
            asyncio.ensure_future(self._pump(reader, upstream[1], delayed=False)),
            asyncio.ensure_future(self._pump(upstream[0], writer, delayed=True)),
        ]
        try:
            # Close both sides when one closes: neither HTTP nor PostgreSQL uses half-closed connections.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for side in (writer, upstream[1]):
                side.close()
            self._connections.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: bool) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if delayed:
                    await self._wait(time.monotonic())
                writer.write(chunk)
                await writer.drain()

    async def _wait(self, since: float) -> None:
        while (left := since + self._delay - time.monotonic()) > 0:
            with suppress(asyncio.TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
