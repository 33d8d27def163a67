"""Injected defects: received over a socket, and switched off when it closes."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lab import LabError
from lab.chaos.switches import SwitchServer
from web import defects


@pytest.fixture
async def switches() -> AsyncIterator[SwitchServer]:
    server = SwitchServer(lambda: {"dice-roller": os.getpid()})
    await server.open()
    yield server
    await server.close()


def running(path: Path | None, found: dict[str, Any]) -> AsyncIterator[None]:
    """The cleanup context of an application whose two switches record their values."""

    async def slowly(value: Any) -> None:
        await asyncio.sleep(0)
        found["slowly"] = value

    listen = defects.listen(path, {"at_once": lambda value: found.update(at_once=value), "slowly": slowly})
    return listen(web.Application())


async def test_a_defect_is_on_once_the_service_has_responded(switches: SwitchServer) -> None:
    found: dict[str, Any] = {}
    context = running(switches.path, found)
    await anext(context)
    await switches.set("dice-roller", {"at_once": 3})
    assert found == {"at_once": 3, "slowly": None}
    await switches.set("dice-roller", {"slowly": True, "of another service": 1})
    assert found == {"at_once": None, "slowly": True}
    await switches.close()
    async with asyncio.timeout(5):
        while found["slowly"]:
            await asyncio.sleep(0.01)
    with pytest.raises(StopAsyncIteration):
        await anext(context)


async def test_a_service_that_was_restarted_has_its_defects_again(switches: SwitchServer) -> None:
    found: dict[str, Any] = {}
    context = running(switches.path, found)
    await anext(context)
    await switches.set("dice-roller", {"at_once": 3})
    with pytest.raises(StopAsyncIteration):
        await anext(context)
    found.clear()
    context = running(switches.path, found)
    await anext(context)
    async with asyncio.timeout(5):
        while not found.get("at_once"):
            await asyncio.sleep(0.01)
    with pytest.raises(StopAsyncIteration):
        await anext(context)


async def test_only_services_receive_defects() -> None:
    others = SwitchServer(lambda: {"dice-roller": 1})
    await others.open()
    reader, writer = await asyncio.open_unix_connection(others.path)
    assert await reader.read() == b""
    writer.close()
    await others.close()


async def test_a_process_that_never_connects_is_reported(
    switches: SwitchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.chaos.switches.TIMEOUT", 0.1)
    with pytest.raises(LabError, match="the frontend does not answer"):
        await switches.set("frontend", {"at_once": 1})


async def test_without_a_socket_nothing_happens() -> None:
    found: dict[str, Any] = {}
    context = running(None, found)
    await anext(context)
    with pytest.raises(StopAsyncIteration):
        await anext(context)
    assert found == {}


async def test_a_closed_socket_is_not_an_error(tmp_path: Path) -> None:
    context = running(tmp_path / "gone", {})
    await anext(context)
    await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await anext(context)


async def test_a_full_disk_affects_files_but_not_pipes(switches: SwitchServer, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    context = running(switches.path, {})
    await anext(context)
    descriptor = os.open(tmp_path / "spans", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"one\n")
    await switches.set("dice-roller", {"full_disk": True})
    with pytest.raises(OSError, match="File too large"):
        os.write(descriptor, b"two\n")
    await switches.set("dice-roller", {})
    os.write(descriptor, b"three\n")
    os.close(descriptor)
    assert (tmp_path / "spans").read_text() == "one\nthree\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
    with pytest.raises(StopAsyncIteration):
        await anext(context)
