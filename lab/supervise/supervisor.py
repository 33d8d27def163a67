"""What keeps services, engines and the database running: whatever ends by itself is started again.

That happens after a pause, longer each time it ends soon after its start, and at once for what an experiment has
held down and lets go.
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

FIRST_PAUSE = 0.5  # seconds; doubled with each end up to
LAST_PAUSE = 30.0
STEADY = 10.0  # seconds of running from which on the next pause is the first one again
POSTGRES_POLL = 0.1

# Starts a process with these variables added to its environment.
Launch = Callable[[Mapping[str, str]], Awaitable[Process]]


class Kept(ABC):
    """Something that is kept running.

    Attributes:
        restarts: how often it was started again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.restarts = 0
        self._free = asyncio.Event()
        self._free.set()
        self._expected = False  # its end, because it was asked for

    @property
    def held(self) -> bool:
        """Whether somebody wants it to stay down."""
        return not self._free.is_set()

    async def hold(self) -> None:
        """Stop it by force, and keep it down until :meth:`release`."""
        self._expected = True
        self._free.clear()
        await self._break()

    def release(self) -> None:
        """Let it be started again."""
        self._free.set()

    async def keep(self, ended: Callable[[Kept, float], None], started: Callable[[Kept], None]) -> None:
        """Start it again whenever it has ended, until cancelled.

        Args:
            ended: is told of each end that nobody wanted, and the seconds until the next start.
            started: is told of each start.
        """
        pause = FIRST_PAUSE / 2
        while True:
            began = time.monotonic()
            await self._ended()
            if not self._expected:
                pause = FIRST_PAUSE if time.monotonic() - began >= STEADY else min(pause * 2, LAST_PAUSE)
                ended(self, pause)
                await asyncio.sleep(pause)
            await self._free.wait()
            if not await self._start():
                self._expected = False
                continue
            self.restarts += 1
            started(self)
            self._expected = self.held
            if self.held:  # asked for while it was starting
                await self._break()

    @property
    @abstractmethod
    def pid(self) -> int | None: ...

    @abstractmethod
    async def _break(self) -> None: ...

    @abstractmethod
    async def _ended(self) -> None: ...

    @abstractmethod
    async def _start(self) -> bool: ...


class KeptProcess(Kept):
    """A service or an engine."""

    def __init__(self, name: str, launch: Launch) -> None:
        super().__init__(name)
        self._launch = launch
        self._variables: dict[str, str] = {}
        self._process: Process | None = None
        self.status = 0  # of its last end

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def start(self) -> None:
        """For the first time."""
        self._process = await self._launch(self._variables)

    async def restart(self, variables: Mapping[str, str]) -> None:
        """Stop it in good order and start it with these variables added to its environment."""
        self._variables = dict(variables)
        self._expected = True
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
            except OSError:  # no process to be had just now
                return False
            if variables is self._variables:
                return True
            await self._process.stop()  # it was to be started with others meanwhile


class KeptPostgres(Kept):
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
        # Its own task: whoever stops us now must wait until there is something to stop.
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
        except LabError:  # its log says why; the next try comes after a longer pause
            return False
        return True
