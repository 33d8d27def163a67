"""Waiting: by polling until a deadline, for a signal, and for many calls at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

POLL = 0.05  # seconds
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class _Attempts:
    deadline: float
    poll: float

    def __iter__(self) -> Iterator[None]:
        yield
        while (left := self.deadline - time.monotonic()) > 0:
            time.sleep(min(self.poll, left))
            yield

    async def __aiter__(self) -> AsyncIterator[None]:
        yield
        while (left := self.deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(self.poll, left))
            yield


def until(deadline: float, poll: float = POLL) -> _Attempts:
    """One iteration per attempt: the first at once, the last at the deadline.

    Iterate with ``async for`` in a coroutine and with ``for`` in a thread that may block. Leave the loop with
    ``break`` or ``return`` on success; its ``else`` runs when the time is up::

        async for _ in until(time.monotonic() + 60):
            if await ready():
                break
        else:
            raise LabError("not ready after 60 s")

    Args:
        deadline: the end, in seconds of :func:`time.monotonic`.
        poll: seconds between attempts.
    """
    return _Attempts(deadline, poll)


def within(seconds: float, poll: float = POLL) -> _Attempts:
    """:func:`until` a number of seconds from now."""
    return until(time.monotonic() + seconds, poll)


async def sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, but no longer than until ``stop`` is set."""
    if seconds < 0.1:  # too short for a second timer
        await asyncio.sleep(seconds)
        return
    with suppress(asyncio.TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def gather(call: Callable[[A], Awaitable[R]], arguments: Iterable[A], limit: int) -> list[R]:
    """The results of a call with each argument, in order; at most ``limit`` calls run at a time."""
    free = asyncio.Semaphore(limit)

    async def limited(argument: A) -> R:
        async with free:
            return await call(argument)

    return await asyncio.gather(*map(limited, arguments))


@asynccontextmanager
async def stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; the second signal cancels the current task."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
