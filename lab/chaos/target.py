"""How faults get into a lab: by its own supervisor where ``dicelab up`` runs it, by the container engine on compose."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psycopg2
from rich.console import Console

from lab import LabError, check
from lab.chaos.faults import Faults
from lab.client import Running
from lab.supervise import engines
from lab.supervise.rundir import RunDir
from lab.supervise.stages import SERVICES

# Each engine, and how its client is asked for a container's service.
ENGINES = {
    "docker": '{{.Label "com.docker.compose.service"}}',
    "podman": '{{index .Labels "com.docker.compose.service"}}',
}
PROJECT = "dicelab"  # the compose project
BASE_PORT = 8000  # the port from which the compose file counts
# A paused container runs for this long, in seconds, between two pauses.
BREATH = 0.05
PSQL = ("psql", "--username=dice", "--dbname=dice", "--command")
UNLOCK = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE dice%'"
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
    """A lab in containers of one compose project.

    What is slow here is a container that is paused most of the time. An experiment that is itself killed with
    SIGKILL leaves what it has stopped or paused; ``unpause`` and ``start`` of the engine mend that.

    Args:
        engine: ``docker`` or ``podman``.
        containers: the id of each part's container, by name.
    """

    def __init__(self, engine: str, containers: Mapping[str, str]) -> None:
        self._engine = engine
        self._containers = containers
        self._stopped: set[str] = set()
        self._stutters: dict[str, asyncio.Task[None]] = {}
        self._locking: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
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
        # At once, and not kill: what is stopped the engine does not start again by itself.
        await self._run("stop", "--time", "0", self._container(name))

    async def start(self, name: str) -> None:
        await self._run("start", self._container(name))
        self._stopped.discard(name)

    async def kill(self, name: str) -> None:
        pid = (await self.processes())[name]
        try:
            # From outside the container, whose first process cannot be killed from inside.
            if pid:
                os.kill(pid, signal.SIGKILL)
        except OSError as error:
            raise LabError(f"process {pid} of the {name} cannot be killed from here: {error.strerror}") from None

    async def slow(self, name: str, seconds: float) -> None:
        stutter = self._stutters.pop(name, None)
        if stutter is not None:
            stutter.cancel()
            await asyncio.gather(stutter, return_exceptions=True)
            with suppress(LabError):  # it may just have been running
                await self._run("unpause", self._container(name))
        if seconds:
            self._stutters[name] = asyncio.ensure_future(self._stutter(self._container(name), seconds))

    async def _stutter(self, container: str, seconds: float) -> None:
        while True:
            await self._run("pause", container)
            await asyncio.sleep(seconds)
            await self._run("unpause", container)
            await asyncio.sleep(BREATH)

    async def lock(self) -> None:
        self._locking = await asyncio.create_subprocess_exec(
            *(self._engine, "exec", self._container("postgres"), *PSQL, f"BEGIN; {LOCK}; SELECT pg_sleep(600)"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def unlock(self) -> None:
        if self._locking is not None:
            await self._run("exec", self._container("postgres"), *PSQL, UNLOCK)
            await self._locking.wait()
            self._locking = None

    async def processes(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, container in self._containers.items():
            pid = (await self._run("inspect", "--format", "{{.State.Pid}}", container)).strip()
            found[name] = int(pid) or None
        return found

    def _container(self, name: str) -> str:
        if name not in self._containers:
            raise LabError(f"no container of this project is a {name}")
        return self._containers[name]

    async def _run(self, *arguments: str) -> str:
        return await _output([self._engine, *arguments])


@dataclass
class ContainerLab(check.Lab):
    """A lab in containers, as a place to look for telemetry: log lines are what the engine has kept of them."""

    engine: str = ""
    containers: Mapping[str, str] = field(default_factory=dict)

    def log_lines(self, service: str) -> list[str]:
        logs = subprocess.run(
            [self.engine, "logs", self.containers[service]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return logs.stdout.decode(errors="replace").split("\n")[:-1]


async def containers(project: str) -> tuple[str, dict[str, str]]:
    """The engine that runs a compose project, and the id of each part's container, by name.

    Raises:
        LabError: when none does.
    """
    label = f"label=com.docker.compose.project={project}"
    for engine, of_service in ENGINES.items():
        if shutil.which(engine):
            with suppress(LabError):  # its client alone is there
                lines = await _output([engine, "ps", "--filter", label, "--format", "{{.ID}} " + of_service])
                if lines:
                    found = (line.partition(" ") for line in lines.splitlines())
                    return engine, {name: container for container, _, name in found}
    raise LabError(f"no containers of the project {project} run here; make compose starts some")


def in_containers(run_dir: Path, parts: Collection[str]) -> Running:
    """The lab of the compose file, which publishes the ports that ``dicelab up --engines`` uses by default."""
    services = {one.name: f"http://127.0.0.1:{BASE_PORT + one.port_offset}" for one in SERVICES if one.name in parts}
    known = {
        one.name: f"http://127.0.0.1:{BASE_PORT + engines.FIRST_PORT + engines.PORTS.index(one.ports[0])}"
        for one in engines.ENGINES
        if one.name in parts
    }
    stage = 5 if "postgres" in parts else 3 if check.DICE in parts else 2 if check.FRONT in parts else 1
    collector = engines.PORTS.index("COLLECTOR_HTTP_PORT") + BASE_PORT + engines.FIRST_PORT
    state = {
        "stage": stage,  # at the least
        "postgres": {},  # a container like the others
        "otlp_endpoint": f"http://127.0.0.1:{collector}",
    }
    return Running(services.get(check.FRONT, services.get(check.ROLLER, "")), RunDir(run_dir), services, known, state)


def check_containers(run_dir: Path, stage: int | None, timeout: float, console: Console) -> int:
    """As :func:`lab.check.check`, for the lab of the compose file.

    Raises:
        LabError: when no containers of it run, or the stage is not said, which they do not show.
    """
    if stage is None:
        raise LabError("which stage it is has to be said of containers, by --stage")
    engine, parts = asyncio.run(containers(PROJECT))
    there = in_containers(run_dir, parts)

    def lab(session: aiohttp.ClientSession) -> check.Lab:
        return ContainerLab(
            *(stage, there.run_dir, dict(there.services), dict(there.engines), session),
            otlp_endpoint=there.state["otlp_endpoint"],
            engine=engine,
            containers=parts,
        )

    return check.ask(lab, stage, timeout, console)


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
