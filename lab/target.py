"""How faults get into a lab: by its own supervisor where ``dicelab up`` runs it, by the container engine on compose."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2

from lab import LabError
from lab.faults import Faults
from lab.running import Running

ENGINES = ("docker", "podman")
# A paused container runs for this long, in seconds, between two pauses.
BREATH = 0.05
LOCK = "LOCK TABLE dice IN ACCESS EXCLUSIVE MODE"


class Target(ABC):
    """A lab that faults can be put into, an asynchronous context: leave it, and all is put back."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def stop(self, name: str) -> None:
        """Stop a part by force and keep it down."""

    @abstractmethod
    async def start(self, name: str) -> None:
        """Start it again."""

    @abstractmethod
    async def kill(self, name: str) -> None:
        """Kill a part, and leave it to whoever supervises it."""

    @abstractmethod
    async def slow(self, name: str, seconds: float) -> None:
        """Make each answer of a part take this much longer; 0 for none."""

    @abstractmethod
    async def lock(self) -> None:
        """Take the table of dice away from all queries."""

    @abstractmethod
    async def unlock(self) -> None:
        """Give it back."""

    @abstractmethod
    async def processes(self) -> dict[str, int | None]:
        """The process of each part, by name; another number is another process."""


class SupervisedLab(Target):
    """The lab of a run dir."""

    def __init__(self, there: Running) -> None:
        self._there = there
        if "faults" not in there.state:
            raise LabError(f"no lab that takes experiments runs in {there.run_dir.path}; start it with dicelab up")
        self._faults = Faults(there.state["faults"])
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

    async def slow(self, name: str, seconds: float) -> None:
        await self._faults.ask(slow=name, seconds=seconds)

    async def lock(self) -> None:
        def take() -> Any:
            connection = psycopg2.connect(self._there.state["postgres"]["url"])
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
        state = self._there.run_dir.state() or {}
        entries = [*state.get("services", []), *state.get("engines", [])]
        found: dict[str, int | None] = {entry["name"]: entry["pid"] for entry in entries}
        if "postgres" in state:
            found["postgres"] = state["postgres"]["pid"]
        return found


class ComposeLab(Target):
    """A lab in containers, by ``docker compose`` or ``podman compose``.

    Here what is slow is a container that is paused most of the time. An experiment that is itself killed leaves
    what it had stopped or paused; ``docker compose unpause`` and ``docker compose up -d`` mend that.
    """

    def __init__(self, directory: Path) -> None:
        engine = next((name for name in ENGINES if shutil.which(name)), None)
        if engine is None:
            raise LabError(f"neither {' nor '.join(ENGINES)} is on PATH")
        self._command = [engine, "compose", "--project-directory", str(directory)]
        self._stopped: set[str] = set()
        self._stutters: dict[str, asyncio.Task[None]] = {}
        self._locking: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self._run("ps")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self._stutters):
            await self.slow(name, 0)
        await self.unlock()
        for name in list(self._stopped):
            await self.start(name)

    async def stop(self, name: str) -> None:
        self._stopped.add(name)
        await self._run("kill", name)

    async def start(self, name: str) -> None:
        await self._run("start", name)
        self._stopped.discard(name)

    async def kill(self, name: str) -> None:
        # From inside: the engine would not restart what it was itself told to kill.
        await self._run("exec", "-T", name, "kill", "-9", "1")

    async def slow(self, name: str, seconds: float) -> None:
        stutter = self._stutters.pop(name, None)
        if stutter is not None:
            stutter.cancel()
            await asyncio.gather(stutter, return_exceptions=True)
            with suppress(LabError):  # it may just have been running
                await self._run("unpause", name)
        if seconds:
            self._stutters[name] = asyncio.ensure_future(self._stutter(name, seconds))

    async def _stutter(self, name: str, seconds: float) -> None:
        while True:
            await self._run("pause", name)
            await asyncio.sleep(seconds)
            await self._run("unpause", name)
            await asyncio.sleep(BREATH)

    async def lock(self) -> None:
        self._locking = await asyncio.create_subprocess_exec(
            *self._command,
            *("exec", "-T", "postgres", "psql", "-U", "postgres", "dice", "-c", f"BEGIN; {LOCK}; SELECT pg_sleep(600)"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )

    async def unlock(self) -> None:
        if self._locking is not None:
            ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE dice%'"
            await self._run("exec", "-T", "postgres", "psql", "-U", "postgres", "dice", "-c", ends)
            await self._locking.wait()
            self._locking = None

    async def processes(self) -> dict[str, int | None]:
        names = (await self._run("ps", "--services")).split()
        found: dict[str, int | None] = {}
        for name in names:
            container = (await self._run("ps", "--quiet", name)).strip()
            pid = await _output([self._command[0], "inspect", "--format", "{{.State.Pid}}", container])
            found[name] = int(pid) or None
        return found

    async def _run(self, *arguments: str) -> str:
        return await _output([*self._command, *arguments])


async def _output(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us; what we undo must not be cut short
    )
    output, said = await process.communicate()
    if process.returncode != 0:
        raise LabError(f"{' '.join(command)}: {said.decode(errors='replace').strip()[-300:]}")
    return output.decode()
