"""The defects that services have on purpose: sent to them over a Unix socket while they run.

A variable or a restart would reveal a defect, by the environment of the process or by the time of its start. So every
service connects to the socket when it starts, with or without a defect. The server identifies it by its process id, and
closes any other connection. ``web/defects.py`` is the other end.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import LabError
from lab.supervise.private import private_directory
from lab.waiting import within

VARIABLE = "DEFECTS_SOCKET"
TIMEOUT = 10.0  # seconds for a service to connect, and to confirm its defects
LINUX_CREDENTIALS = struct.Struct("3i")
DARWIN_LOCAL, DARWIN_PEER_PID = 0, 2


class SwitchServer:
    """The supervisor's end of the socket.

    Args:
        process_of: the process id of each service's process, by name, at this moment.
    """

    def __init__(self, process_of: Callable[[], Mapping[str, int]]) -> None:
        self._process_of = process_of
        self._directory = private_directory()
        self._server: asyncio.Server | None = None
        self._connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._values: dict[str, Mapping[str, Any]] = {}
        self._one_at_a_time = asyncio.Lock()  # a response does not say which message it belongs to

    @property
    def path(self) -> Path:
        return self._directory / "defects.sock"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self.path)

    async def close(self) -> None:
        """Stop listening and close the connections: every service then switches its defects off."""
        if self._server is not None:
            self._server.close()
        for name in list(self._connections):
            self._hang_up(name)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def set(self, name: str, values: Mapping[str, Any]) -> None:
        """Give a process these defects and no others, and wait until it has confirmed them.

        Raises:
            LabError: when it does not confirm them in time.
        """
        self._values[name] = values
        async for _ in within(TIMEOUT):
            if name not in self._connections:
                continue
            with suppress(KeyError):
                if await self._send(name):
                    return
        raise LabError(f"the {name} does not answer")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = peer_process(writer.get_extra_info("socket"))
        name = next((name for name, own in self._process_of().items() if own == process), None)
        if name is None:
            writer.close()
            return
        self._hang_up(name)  # on the process before it, which has ended
        self._connections[name] = reader, writer
        if self._values.get(name):  # it was restarted
            with suppress(KeyError):
                await self._send(name)

    async def _send(self, name: str) -> bool:
        """Send a process its defects; returns whether it has responded."""
        async with self._one_at_a_time:
            reader, writer = self._connections[name]
            with suppress(OSError):  # a time-out is one
                async with asyncio.timeout(TIMEOUT):
                    writer.write(json.dumps(self._values[name]).encode() + b"\n")
                    await writer.drain()
                    if await reader.readline():
                        return True
            # It has ended, or is late: its response would be taken for that to the next message.
            if self._connections.get(name) == (reader, writer):
                self._hang_up(name)
            return False

    def _hang_up(self, name: str) -> None:
        _, writer = self._connections.pop(name, (None, None))
        if writer is not None:
            writer.close()


def peer_process(connection: socket.socket) -> int:
    """The process id of the other end of a Unix socket; 0 where the operating system does not tell."""
    if sys.platform == "darwin":
        return int(connection.getsockopt(DARWIN_LOCAL, DARWIN_PEER_PID))
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, LINUX_CREDENTIALS.size)
    return int(LINUX_CREDENTIALS.unpack(found)[0])
