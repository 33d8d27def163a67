"""Faults in a running lab: how an experiment requests them, and how they end with it.

``dicelab up`` listens on a Unix socket, whose path is in the state file as ``faults``. An experiment connects and sends
requests. Request and response are JSON objects, one a line::

    {"begin": true}                         does nothing: the response to the first request says whether another
                                            experiment runs
    {"hold": "die-service"}                 kill it and keep it down
    {"release": "die-service"}              start it again
    {"slow": "die-service", "seconds": 3}   delay its responses, by a proxy in front of it
    {"freeze": "loki"}                      pause its process (SIGSTOP)
    {"thaw": "loki"}                        resume it (SIGCONT)
    {"fill": "loki"}                        fill its file system
    {"empty": "loki"}                       free that space again
    {"restart": {"dice-roller": {"OTEL_PROPAGATORS": "none"}}}   restart services with these variables added
    {"prepare": {"dice-roller": 0.02}}      put a proxy in front of every server, with these delays, and restart each
                                            service once, so that later faults need no restart and no new address
    {"switch": {"dice-roller": {"blocking": true}}}   give these processes these defects; needs "prepare"
    {"end": true}                           remove all faults, and respond once that is done

The faults last as long as the connection: they are removed when it closes, even if the experiment is killed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lab import LabError
from lab.chaos.proxy import Address, Proxy
from lab.chaos.switches import VARIABLE, SwitchServer
from lab.supervise.private import private_directory
from lab.supervise.supervised import Supervised, SupervisedProcess

MAX_DELAY = 60.0  # seconds
MAX_FILE_SYSTEM = 256 * 2**20  # bytes; only a file system that is smaller, made for this purpose, is filled
# The variables that an experiment may set when it restarts a service.
VARIABLES = {"BLOCKING_WAIT", "DB_POOL_SIZE", "DB_POOL_TIMEOUT", "OTEL_PROPAGATORS"}


@dataclass(frozen=True)
class Link:
    """The connection from a service to another one or to the database.

    Attributes:
        users: the processes of the service that connects.
        server: the address that it connects to.
        variables: the environment variables that make it connect to a proxy at this address instead.
    """

    users: Sequence[SupervisedProcess]
    server: Address
    variables: Callable[[str], Mapping[str, str]]


class FaultServer:
    """Listens for experiments, in the process of ``dicelab up``.

    Args:
        parts: the services, the engines and the database, by name.
        links: the connections that can be slowed down, by the name of their server.
        services: the names of the services' processes, a subset of the parts.
        data: the directory that holds the engines' data, a directory for each engine.
    """

    def __init__(
        self, parts: Mapping[str, Supervised], links: Mapping[str, Link], services: Sequence[str], data: Path
    ) -> None:
        self._parts = parts
        self._links = links
        self._services = services
        self._data = data
        self._directory = private_directory()  # a run dir's path may be too long for a socket
        self._server: asyncio.Server | None = None
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def path(self) -> Path:
        return self._directory / "faults.sock"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self.path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._busy:
                await reader.readline()  # a client whose write fails would not read the reason
                await _reply(writer, {"error": "another experiment runs in this lab"})
                return
            self._busy = True
            try:
                async with _Faults(self._parts, self._links, self._services, self._data) as faults:
                    while line := await reader.readline():
                        await _reply(writer, await faults.respond(line))
            finally:
                self._busy = False
        except (ConnectionError, ValueError):  # the experiment has disconnected, or its line is too long
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


async def _reply(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    writer.write(json.dumps(document).encode() + b"\n")
    await writer.drain()


class _Faults:
    """The faults of one experiment; leaving the context removes them."""

    def __init__(
        self, parts: Mapping[str, Supervised], links: Mapping[str, Link], services: Sequence[str], data: Path
    ) -> None:
        self._parts = parts
        self._links = links
        self._services = services
        self._data = data
        self._switches: SwitchServer | None = None
        self._held: set[str] = set()
        self._frozen: dict[str, int] = {}  # process ids
        self._fillers: dict[str, IO[bytes]] = {}  # unlinked files: closing them frees their space
        self._proxies: dict[str, Proxy] = {}
        self._variables: dict[str, dict[str, str]] = {}  # added to a service's environment, by its name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    async def respond(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if "hold" in request:
                await self._hold(request["hold"])
            elif "release" in request:
                self._release(request["release"])
            elif "freeze" in request:
                self._freeze(request["freeze"])
            elif "thaw" in request:
                self._thaw(request["thaw"])
            elif "fill" in request:
                await asyncio.to_thread(self._fill, request["fill"])
            elif "empty" in request:
                self._empty(request["empty"])
            elif "restart" in request:
                await self._restart(request["restart"])
            elif "prepare" in request:
                await self._prepare(request["prepare"])
            elif "switch" in request:
                await self._switch(request["switch"])
            elif "end" in request:
                await self._end()
            elif "begin" in request:
                pass
            else:
                await self._slow(request["slow"], float(request["seconds"]))
        except (LabError, ValueError, KeyError, TypeError, AttributeError) as error:
            return {
                "error": str(error)
                if isinstance(error, LabError)
                else f"no such request: {line.decode(errors='replace')[:200]}"
            }
        return {"done": True}

    async def _end(self) -> None:
        for name in list(self._frozen):
            self._thaw(name)
        for name in list(self._fillers):
            self._empty(name)
        for name in self._held:
            self._parts[name].release()
        self._held.clear()
        if self._switches is not None:
            await self._switches.close()
            self._switches = None
        for proxy in self._proxies.values():
            proxy.delay = 0
        await asyncio.gather(*(self._service(name).restart({}) for name in self._variables))
        self._variables.clear()
        for proxy in self._proxies.values():
            await proxy.close()
        self._proxies.clear()

    async def _hold(self, name: str) -> None:
        if name not in self._parts:
            raise LabError(f"this lab runs no {name} of its own")
        self._held.add(name)
        await self._parts[name].hold()

    def _release(self, name: str) -> None:
        if name in self._held:
            self._held.discard(name)
            self._parts[name].release()

    def _freeze(self, name: str) -> None:
        pid = self._parts[name].pid if name in self._parts else None
        if pid is None:
            raise LabError(f"this lab runs no {name} of its own")
        os.kill(pid, signal.SIGSTOP)
        self._frozen[name] = pid

    def _thaw(self, name: str) -> None:
        pid = self._frozen.pop(name, None)
        if pid is not None and pid == self._parts[name].pid:  # else it has been restarted
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _fill(self, name: str) -> None:
        directory = self._data / name
        if name not in self._parts or not os.path.ismount(directory):
            raise LabError(f"{directory} is not a mount point; mount a small file system there, which can be filled")
        if shutil.disk_usage(directory).total > MAX_FILE_SYSTEM:
            limit = MAX_FILE_SYSTEM // 2**20
            raise LabError(f"the file system at {directory} is not filled, because it is larger than {limit} MiB")
        if name not in self._fillers:
            self._fillers[name] = tempfile.TemporaryFile(dir=directory, buffering=0)
        filler = self._fillers[name]
        size = 2**20
        while size:
            try:
                filler.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise LabError(f"{directory} cannot be filled: {error.strerror}") from None
                size //= 16

    def _empty(self, name: str) -> None:
        if name in self._fillers:
            self._fillers.pop(name).close()

    async def _slow(self, name: str, seconds: float) -> None:
        if name not in self._links:
            raise LabError(f"no service of this lab connects to a {name} that the lab runs")
        if not 0 <= seconds <= MAX_DELAY:
            raise LabError(f"{seconds} is not from 0 to {MAX_DELAY:g} seconds")
        if name not in self._proxies:
            variables = await self._open_proxy(name)
            await asyncio.gather(*(self._set(user.name, variables) for user in self._links[name].users))
        self._proxies[name].delay = seconds

    async def _open_proxy(self, name: str) -> Mapping[str, str]:
        """Put a proxy in front of a server; returns the variables that its users need."""
        link = self._links[name]
        proxy = self._proxies[name] = Proxy(link.server)
        return link.variables(await proxy.open())

    async def _prepare(self, delays: Mapping[str, float]) -> None:
        if self._proxies or self._switches is not None or self._variables:
            raise LabError("the lab has faults already")
        given = {name: float(seconds) for name, seconds in delays.items()}
        if not set(given) <= set(self._links) or not all(0 <= seconds <= MAX_DELAY for seconds in given.values()):
            raise LabError(f"the links of this lab are {', '.join(self._links)}; delays are 0 to {MAX_DELAY:g} seconds")
        self._switches = SwitchServer(lambda: {name: self._service(name).pid for name in self._services})
        await self._switches.open()
        variables = {name: {VARIABLE: str(self._switches.path)} for name in self._services}
        for name, link in self._links.items():
            added = await self._open_proxy(name)
            self._proxies[name].delay = given.get(name, 0.0)
            for user in link.users:
                variables[user.name] |= added
        await asyncio.gather(*(self._set(name, own) for name, own in variables.items()))

    async def _switch(self, defects: Mapping[str, Mapping[str, Any]]) -> None:
        if self._switches is None:
            raise LabError("the request switch needs the request prepare before it")
        for name in defects:
            if name not in self._services:
                raise LabError(f"this lab runs no {name} of its own")
        await asyncio.gather(*(self._switches.set(name, dict(own)) for name, own in defects.items()))

    async def _restart(self, services: Mapping[str, Mapping[str, str]]) -> None:
        for name, variables in services.items():
            self._service(name)
            if unknown := set(variables) - VARIABLES:
                raise LabError(f"{', '.join(sorted(unknown))} cannot be set in a running lab")
        await asyncio.gather(*(self._set(name, variables) for name, variables in services.items()))

    async def _set(self, name: str, variables: Mapping[str, str]) -> None:
        """Restart a service with these variables, in addition to those of earlier requests."""
        added = {**self._variables.get(name, {}), **variables}
        if added:
            self._variables[name] = added
        await self._service(name).restart(added)

    def _service(self, name: str) -> SupervisedProcess:
        part = self._parts.get(name)
        if not isinstance(part, SupervisedProcess):
            raise LabError(f"this lab runs no {name} of its own")
        return part


class Faults:
    """The experiment's connection: an asynchronous context. Leaving it removes the faults.

    Entering it raises :class:`LabError` while another experiment runs in the lab.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._one_at_a_time = asyncio.Lock()  # a response does not say which request it belongs to
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._streams = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise LabError(f"the lab does not accept experiments at {self._path}: {error.strerror}") from None
        try:
            await self.ask(begin=True)
        except BaseException:
            self._streams[1].close()
            self._streams = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._streams is None:
            return
        reader, writer = self._streams
        try:
            # The lab closes the connection once the faults are removed; until then it would refuse the next experiment.
            with suppress(OSError):
                writer.write_eof()
                await reader.read()
        finally:
            writer.close()

    async def ask(self, **request: Any) -> None:
        """Send a request and wait until the lab has carried it out.

        Raises:
            LabError: when the lab refuses it, or has ended.
        """
        assert self._streams is not None
        reader, writer = self._streams
        line = b""
        async with self._one_at_a_time:
            with suppress(ConnectionError):
                with suppress(ConnectionError):  # a refused connection may still hold the reason
                    writer.write(json.dumps(request).encode() + b"\n")
                    await writer.drain()
                line = await reader.readline()
        response = json.loads(line or b'{"error": "the lab has ended"}')
        if "error" in response:
            raise LabError(str(response["error"]))
