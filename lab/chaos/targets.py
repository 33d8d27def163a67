"""How an experiment breaks a lab: through the supervisor of ``dicelab up``, or through docker or podman."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self

import psycopg2

from lab import LabError
from lab.chaos.faults import Faults
from lab.client import Lab
from lab.containers import Containers, output

# Seconds that a slowed-down container runs between two pauses.
RUN_TIME = 0.05
PSQL = ("psql", "--username=dice", "--dbname=dice", "--command")
UNLOCK = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE dice%'"
LOCK = "LOCK TABLE dice IN ACCESS EXCLUSIVE MODE"


class Target(ABC):
    """A lab that can be broken. An asynchronous context: leaving it removes every fault."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def stop(self, name: str) -> None:
        """Kill a service, an engine or the database, and keep it down."""

    @abstractmethod
    async def start(self, name: str) -> None:
        """Start it again."""

    @abstractmethod
    async def kill(self, name: str) -> None:
        """Kill a process that the supervisor then restarts."""

    @abstractmethod
    async def freeze(self, name: str) -> None:
        """Pause its process: connections to it stay open, and nothing responds."""

    @abstractmethod
    async def thaw(self, name: str) -> None:
        """Resume its process."""

    @abstractmethod
    async def fill(self, name: str) -> None:
        """Fill the file system that holds an engine's data."""

    @abstractmethod
    async def empty(self, name: str) -> None:
        """Free that space again."""

    @abstractmethod
    async def slow(self, name: str, seconds: float) -> None:
        """Delay each of its responses by this many seconds; 0 ends the delay."""

    @abstractmethod
    async def lock(self) -> None:
        """Lock the table of dice, so that every query waits."""

    @abstractmethod
    async def unlock(self) -> None:
        """Release the lock."""

    @abstractmethod
    async def processes(self) -> dict[str, int | None]:
        """The process id of each service, of each engine and of the database, by name; ``None`` while it is down."""


class RunDirTarget(Target):
    """The lab of a run dir, through the socket that its supervisor listens on."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        if "faults" not in lab.state:
            raise LabError(f"the lab in {lab.run_dir} does not accept experiments; start it again with dicelab up")
        self._faults = Faults(lab.state["faults"])
        self._locking: Any = None  # the connection that holds the lock

    async def __aenter__(self) -> Self:
        await self._faults.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.unlock()
        await self._faults.__aexit__(kind, error, traceback)

    async def stop(self, name: str) -> None:
        await self._faults.ask(hold=name)

    async def start(self, name: str) -> None:
        await self._faults.ask(release=name)

    async def kill(self, name: str) -> None:
        pid = (await self.processes()).get(name)
        if pid is None:
            raise LabError(f"this lab runs no {name}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def freeze(self, name: str) -> None:
        await self._faults.ask(freeze=name)

    async def thaw(self, name: str) -> None:
        await self._faults.ask(thaw=name)

    async def fill(self, name: str) -> None:
        await self._faults.ask(fill=name)

    async def empty(self, name: str) -> None:
        await self._faults.ask(empty=name)

    async def slow(self, name: str, seconds: float) -> None:
        await self._faults.ask(slow=name, seconds=seconds)

    async def restart(self, services: Mapping[str, Mapping[str, str]]) -> None:
        """Restart services at the same time, each with these variables added to its environment."""
        await self._faults.ask(restart=services)

    async def prepare(self, delays: Mapping[str, float]) -> None:
        """Put a proxy in front of every server, with delays in seconds by name, and restart each service once."""
        await self._faults.ask(prepare=delays)

    async def switch(self, defects: Mapping[str, Mapping[str, Any]]) -> None:
        """Give processes these defects, by name, and take away all others; see ``web/defects.py``."""
        await self._faults.ask(switch=defects)

    async def end(self) -> None:
        """Remove every fault."""
        await self.unlock()
        await self._faults.ask(end=True)

    async def lock(self) -> None:
        def take() -> Any:
            connection = psycopg2.connect(self._lab.state["postgres"]["url"])
            try:
                with connection.cursor() as cursor:
                    cursor.execute(LOCK)
            except BaseException:
                connection.close()
                raise
            return connection

        try:
            self._locking = await asyncio.to_thread(take)
        except psycopg2.Error as error:
            raise LabError(f"the table of dice cannot be locked: {error}") from None

    async def unlock(self) -> None:
        if self._locking is not None:
            self._locking.close()
            self._locking = None

    async def processes(self) -> dict[str, int | None]:
        state = self._lab.directory.state() or {}
        entries = [*state.get("services", []), *state.get("engines", [])]
        found: dict[str, int | None] = {entry["name"]: entry["pid"] for entry in entries}
        if "postgres" in state:
            found["postgres"] = state["postgres"]["pid"]
        return found


class CommandTarget(Target):
    """A lab whose database is reached by running psql through docker, podman or kubectl."""

    def __init__(self) -> None:
        self._locking: asyncio.subprocess.Process | None = None

    @abstractmethod
    def psql(self, query: str) -> list[str]:
        """The command line that runs a query in the dice database, as the user who owns it."""

    async def lock(self) -> None:
        self._locking = await start(self.psql(f"BEGIN; {LOCK}; SELECT pg_sleep(600)"))

    async def unlock(self) -> None:
        if self._locking is not None:
            await output(self.psql(UNLOCK))
            await self._locking.wait()
            self._locking = None


async def start(arguments: Sequence[str], stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """Start a command that holds a fault; its output is discarded."""
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not interrupt it before its fault is removed
    )


class ContainerTarget(CommandTarget):
    """The lab of a compose project.

    A container is slowed down by pausing it most of the time. If the experiment is killed with SIGKILL, containers stay
    stopped or paused: repair that with the commands ``unpause`` and ``start`` of docker or podman.
    """

    def __init__(self, containers: Containers) -> None:
        super().__init__()
        self._containers = containers
        self._stopped: set[str] = set()
        self._frozen: set[str] = set()
        self._pausers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:  # calls back in reverse order, each even if another one fails
            for name in self._stopped:
                stack.push_async_callback(self.start, name)
            for name in self._frozen:
                stack.push_async_callback(self.thaw, name)
            stack.push_async_callback(self.unlock)
            for name in self._pausers:
                stack.push_async_callback(self.slow, name, 0)

    async def stop(self, name: str) -> None:
        self._stopped.add(name)
        # stop, not kill: docker restarts a killed container.
        await self._containers.run("stop", "--time", "0", self._containers.id(name))

    async def start(self, name: str) -> None:
        await self._containers.run("start", self._containers.id(name))
        self._stopped.discard(name)

    async def kill(self, name: str) -> None:
        pid = (await self.processes())[name]
        try:
            # From outside: the first process of a container cannot be killed from inside it.
            if pid:
                os.kill(pid, signal.SIGKILL)
        except OSError as error:
            raise LabError(f"process {pid} of the {name} cannot be killed from here: {error.strerror}") from None

    async def freeze(self, name: str) -> None:
        self._frozen.add(name)
        await self._containers.run("pause", self._containers.id(name))

    async def thaw(self, name: str) -> None:
        await self._containers.run("unpause", self._containers.id(name))
        self._frozen.discard(name)

    async def fill(self, name: str) -> None:
        raise LabError("the disk of a container is not filled: it is this machine's; use a lab of dicelab up")

    async def empty(self, name: str) -> None:
        """Nothing was filled."""

    async def slow(self, name: str, seconds: float) -> None:
        pauser = self._pausers.pop(name, None)
        if pauser is not None:
            pauser.cancel()
            await asyncio.gather(pauser, return_exceptions=True)
            with suppress(LabError):  # it may not have been paused at this moment
                await self._containers.run("unpause", self._containers.id(name))
        if seconds:
            self._pausers[name] = asyncio.ensure_future(self._pause_repeatedly(self._containers.id(name), seconds))

    async def _pause_repeatedly(self, container: str, seconds: float) -> None:
        while True:
            await self._containers.run("pause", container)
            await asyncio.sleep(seconds)
            await self._containers.run("unpause", container)
            await asyncio.sleep(RUN_TIME)

    def psql(self, query: str) -> list[str]:
        return [self._containers.command, "exec", self._containers.id("postgres"), *PSQL, query]

    async def processes(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, container in self._containers.ids.items():
            pid = (await self._containers.run("inspect", "--format", "{{.State.Pid}}", container)).strip()
            found[name] = int(pid) or None
        return found
