"""Calls between event loops that run in different threads."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from typing import Any, TypeVar, cast

T = TypeVar("T")


class _OnLoop:
    """A proxy of an object for another thread: its coroutine methods run on the object's own event loop.

    They run in the caller's context, so spans keep their parent, and are cancelled with the caller. All other
    attributes are read directly.

    Args:
        target: the object; its methods use what belongs to ``loop``, such as a client session or a lock.
        loop: the event loop that the methods need.
    """

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(value(*args, **kwargs), self._loop))

        return call


def on_loop(target: T, loop: asyncio.AbstractEventLoop) -> T:
    """A proxy of an object that another thread may use: see :class:`_OnLoop`."""
    return cast(T, _OnLoop(target, loop))


def fields_on_loop(record: T, loop: asyncio.AbstractEventLoop) -> T:
    """A copy of a dataclass instance whose fields with coroutine methods are each wrapped by :func:`on_loop`.

    Fields that hold the same object hold the same one in the copy.
    """
    assert dataclasses.is_dataclass(record)
    assert not isinstance(record, type)
    seen: dict[int, object] = {}
    changes = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if inspect.getmembers(type(value), inspect.iscoroutinefunction):
            changes[field.name] = seen.setdefault(id(value), on_loop(value, loop))
    return dataclasses.replace(record, **changes)
