"""Services, engines and the database under supervision: one that ends unexpectedly is started again.

Before each restart there is a pause, which doubles if a process ends soon after its start. An experiment can hold a
part down; it is started again once the experiment releases it.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lab import LabError
from lab.supervise.postgres import EmbeddedPostgres, socket_in
from lab.supervise.processes import Process

FIRST_PAUSE = 0.5  # seconds; doubled after each short run
LAST_PAUSE = 30.0  # seconds; the longest pause
STEADY = 10.0  # seconds; after a run of at least this length the pause is FIRST_PAUSE again
POSTGRES_POLL = 0.1

# Starts a process, given the variables that are added to its environment.
Launch = Callable[[Mapping[str, str]], Awaitable[Process]]


class Supervised(ABC):
    """A part of the lab that is started again when it ends.

    Attributes:
        restarts: how often it has been started again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.restarts = 0
        self._released = asyncio.Event()
        self._released.set()
        self._end_expected = False

    @property
    def held(self) -> bool:
        """Whether an experiment holds it down."""
        return not self._released.is_set()

    async def hold(self) -> None:
        """Kill it, and keep it down until :meth:`release`."""
        self._end_expected = True
        self._released.clear()
        await self._break()

    def release(self) -> None:
        """Let it be started again."""
        self._released.set()

    async def supervise(
        self, ended: Callable[[Supervised, float], None], started: Callable[[Supervised], None]
    ) -> None:
        """Start it again whenever it has ended, until cancelled.

        Args:
            ended: called after each unexpected end, with the seconds until the next start.
            started: called after each start.
        """
        pause = FIRST_PAUSE / 2
        while True:
            began = time.monotonic()
            await self._ended()
            if not self._end_expected:
                pause = FIRST_PAUSE if time.monotonic() - began >= STEADY else min(pause * 2, LAST_PAUSE)
                ended(self, pause)
                await asyncio.sleep(pause)
            await self._released.wait()
            if not await self._start():
                self._end_expected = False
                continue
            self.restarts += 1
            started(self)
            self._end_expected = self.held
            if self.held:  # hold() was called while it was starting
                await self._break()

    @property
    @abstractmethod
    def pid(self) -> int | None: ...

    @abstractmethod
    async def _break(self) -> None:
        """Kill it, and wait for its end."""

    @abstractmethod
    async def _ended(self) -> None:
        """Wait for its end."""

    @abstractmethod
    async def _start(self) -> bool:
        """Start it; returns ``False`` when that failed, to try again later."""


class SupervisedProcess(Supervised):
    """A service or an engine."""

    def __init__(self, name: str, launch: Launch) -> None:
        super().__init__(name)
        self._launch = launch
        self._variables: dict[str, str] = {}
        self._process: Process | None = None
        self.status = 0  # exit status of its last end

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def start(self) -> None:
        """Start it for the first time."""
        self._process = await self._launch(self._variables)

    async def restart(self, variables: Mapping[str, str]) -> None:
        """Stop it gracefully and start it with these variables added to its environment."""
        self._variables = dict(variables)
        self._end_expected = True
        await self.process.stop()

    async def _break(self) -> None:
        self.process.kill()
        await self.process.ended()

    async def _ended(self) -> None:
        self.status = await self.process.ended()

    async def _start(self) -> bool:
        while True:
            variables = self._variables
            try:
                self._process = await self._launch(variables)
            except OSError:  # out of processes or memory
                return False
            if variables is self._variables:
                return True
            await self._process.stop()  # restart() has set other variables in the meantime


class SupervisedPostgres(Supervised):
    """The embedded database."""

    def __init__(self, data: Path) -> None:
        super().__init__("postgres")
        self._server = EmbeddedPostgres(data)
        self._starting: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._server.pid

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def socket(self) -> Path:
        assert self._server.socket_directory is not None
        return socket_in(self._server.socket_directory)

    async def start(self) -> None:
        # In a task of its own, which is not cancelled: stop() waits for it.
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._server.start))
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.to_thread(self._server.close)

    async def _break(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def _ended(self) -> None:
        while self._server.running():
            await asyncio.sleep(POSTGRES_POLL)

    async def _start(self) -> bool:
        try:
            await self.start()
        except LabError:  # its log says why
            return False
        return True
