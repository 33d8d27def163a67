"""Services, engines and the database under supervision: one that ends by itself is started again.

It is started after a pause, which doubles each time it ends soon after its start. An experiment may hold one down: it
is started as soon as the experiment releases it.
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

FIRST_PAUSE = 0.5  # seconds; doubled with each end
LAST_PAUSE = 30.0
STEADY = 10.0  # seconds; after a run of this length the next pause is the first one again
POSTGRES_POLL = 0.1

# Starts a process with these variables added to its environment.
Launch = Callable[[Mapping[str, str]], Awaitable[Process]]


class Supervised(ABC):
    """A part of the lab that is restarted when it ends.

    Attributes:
        restarts: how often it was started again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.restarts = 0
        self._released = asyncio.Event()
        self._released.set()
        self._end_expected = False

    @property
    def held(self) -> bool:
        """Whether it is to stay down."""
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
            ended: called at each unexpected end, with the seconds until the next start.
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
            if self.held:  # held while it was starting
                await self._break()

    @property
    @abstractmethod
    def pid(self) -> int | None: ...

    @abstractmethod
    async def _break(self) -> None:
        """Stop it by force."""

    @abstractmethod
    async def _ended(self) -> None:
        """Wait for its end."""

    @abstractmethod
    async def _start(self) -> bool:
        """Start it; ``False`` when that failed and is to be tried again."""


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
            await self._process.stop()  # restart() has set others meanwhile


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
