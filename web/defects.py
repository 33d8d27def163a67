"""Injected defects: switched on and off in a running service during ``dicelab mystery``.

In ordinary runs ``DEFECTS_SOCKET`` is not set, and no defect can be injected. During a game every service connects to
that Unix socket and receives lines of JSON. Each line is an object with all defects that are to be on::

    {"blocking": true}

The service responds with an empty line once it has applied them. When the connection closes, it switches all off.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from opentelemetry import propagate

from web.faulty_propagation import FaultyPropagator

# Switches one defect on with a value, such as true, or off with None.
Switch = Callable[[Any], Awaitable[None] | None]


def listen(
    path: Path | None, switches: Mapping[str, Switch] | None = None
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context: receive defects while the application runs; without a path it does nothing."""

    async def while_running(app: web.Application) -> AsyncIterator[None]:
        if path is None:
            yield
            return
        task = asyncio.create_task(_receive(path, {**_common(), **(switches or {})}))
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return while_running


async def _receive(path: Path, switches: Mapping[str, Switch]) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:  # the game is over
        return
    try:
        while line := await reader.readline():
            await _apply(switches, json.loads(line))
            writer.write(b"\n")
            await writer.drain()
    except (OSError, ValueError):
        pass
    finally:
        writer.close()
        await _apply(switches, {})


async def _apply(switches: Mapping[str, Switch], values: Mapping[str, Any]) -> None:
    for name, switch in switches.items():
        done = switch(values.get(name))
        if done is not None:
            await done


def _common() -> dict[str, Switch]:
    """The defects that every service can have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_disk(on: Any) -> None:
        """Make every write to a regular file fail. A service writes only its spans to files; its lines go to a pipe."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]) if on else before)

    switches: dict[str, Switch] = {"full_disk": full_disk}
    propagator = propagate.get_global_textmap()
    if isinstance(propagator, FaultyPropagator):

        def no_context(on: Any) -> None:
            propagator.injects = not on

        def sampled(share: Any) -> None:
            propagator.sampled = share

        switches |= {"no_context": no_context, "sampled": sampled}
    return switches
