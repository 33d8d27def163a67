"""Panel behind our server: memory, limits and privacy."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import panel as pn
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bokeh.document import Document

from frontend import panel_server
from frontend.panel_server import PanelServer, user_of
from frontend.threads import fields_on_loop, on_loop
from frontend.usage import User
from web import problems
from web.tuning import reduce_garbage_collection

LARGE = 6_000_000  # bytes; more than the buffers of a connection
USER = User("00000000-0000-0000-0000-000000000001", 'Ä "quoted" 🎲')


@asynccontextmanager
async def serving(
    page: Callable[[], Any], max_sessions: int = 1000, unused_lifetime: float = 1.0
) -> AsyncIterator[tuple[PanelServer, TestClient]]:  # type: ignore[type-arg]
    panel = PanelServer(page, max_sessions, unused_lifetime)

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[problems.middleware()])
    app.router.add_get("/", lambda request: panel.page(request, USER))
    app.router.add_get("/ws", lambda request: panel.websocket(request, USER))
    app.router.add_get("/static/{path:.+}", panel.relay)
    app.router.add_get("/healthz", health)
    async with panel.running(), TestClient(TestServer(app)) as client:
        yield panel, client


class Counter:
    """Belongs to one event loop; its methods return the loop on which they ran."""

    name = "counter"

    async def where(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def fail(self) -> None:
        raise ValueError("as asked")


@dataclass(frozen=True)
class Record:
    first: Counter
    same: Counter
    nothing: Counter | None
    text: str


async def test_methods_run_on_the_event_loop_of_their_object() -> None:
    home = asyncio.get_running_loop()
    counter = Counter()
    record = fields_on_loop(Record(counter, counter, None, "text"), home)
    assert record.first is record.same
    assert (record.nothing, record.text, record.first.name) == (None, "text", "counter")

    async def elsewhere() -> None:
        variable.set("caller's")
        assert asyncio.get_running_loop() is not home
        assert await record.first.where() is home
        assert await on_loop(counter, home).where() is home
        with pytest.raises(ValueError, match="as asked"):
            await record.first.fail()
        assert await on_loop(Reader(), home).read() == "caller's"

    variable: ContextVar[str] = ContextVar("variable")

    class Reader:
        async def read(self) -> str:
            return variable.get()

    await asyncio.to_thread(asyncio.run, elsewhere())


def documents() -> int:
    gc.collect()
    return sum(isinstance(entry, Document) for entry in gc.get_objects())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.2)


def simple() -> pn.Column:
    """A page that watches Panel's global state, as some components do; the watcher keeps a reference to the page."""
    page = pn.Column(pn.pane.HTML("hello"))
    pn.state.param.watch(lambda _event: page.param.trigger("visible"), "busy")
    return page


@pytest.fixture
def rare_collections() -> Iterator[None]:
    """The settings of garbage collection that a service has."""
    before = gc.get_threshold()
    reduce_garbage_collection()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("rare_collections")
async def test_ended_sessions_are_collected_while_the_service_runs() -> None:
    count = 2 * panel_server.COLLECT_AFTER
    async with serving(simple) as (panel, client):
        for _ in range(count):
            async with client.get("/") as response:
                assert response.status == 200
        await until(lambda: panel.sessions == 0)
        left = sum(isinstance(entry, Document) for entry in gc.get_objects())
        assert left <= panel_server.COLLECT_AFTER


async def test_closed_pages_are_freed() -> None:
    async with serving(simple) as (panel, client):
        watchers = str(pn.state.param.watchers)
        before = documents()
        for number in range(10):
            async with client.get("/") as response:
                assert response.status == 200
                html = await response.text()
            if number % 2:
                token = html.partition('"token":"')[2].partition('"')[0]
                async with client.ws_connect("/ws", protocols=("bokeh", token)) as connection:
                    assert "ACK" in await connection.receive_str()
        await until(lambda: panel.sessions == 0)
        assert str(pn.state.param.watchers) == watchers
        await until(lambda: documents() <= before + 1)


async def test_building_a_page_does_not_block_requests() -> None:
    building, proceed = threading.Event(), threading.Event()

    def slow() -> pn.Column:
        building.set()
        proceed.wait(10)
        return simple()

    async with serving(slow) as (_, client):
        page = asyncio.ensure_future(client.get("/"))
        await asyncio.to_thread(building.wait, 10)
        async with client.get("/healthz") as response:
            assert response.status == 200
        assert not page.done()
        proceed.set()
        assert (await page).status == 200


async def test_page_requests_beyond_the_queue_get_retry_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(panel_server, "MAX_WAITING", 3)
    built = []

    def slow() -> pn.Column:
        built.append(time.monotonic())
        time.sleep(0.5)
        return simple()

    async with serving(slow) as (_, client):

        async def load() -> tuple[int, str | None]:
            async with client.get("/") as response:
                return response.status, response.headers.get("Retry-After")

        responses = await asyncio.gather(*(load() for _ in range(8)))
        assert sorted(responses) == [(200, None)] * 3 + [(503, "3")] * 5
        assert len(built) == 3


async def test_a_browser_that_does_not_read_delays_no_other() -> None:
    def large() -> pn.Template:
        return pn.Template("x" * LARGE)

    async with serving(large) as (_, client):
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", client.port))
            stalled.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.to_thread(stalled.recv, 1, socket.MSG_PEEK)  # the response has begun
            async with asyncio.timeout(20), client.get("/") as response:
                assert response.status == 200
                assert len(await response.read()) == LARGE


async def test_waiting_pages_count_as_sessions() -> None:
    def slow() -> pn.Column:
        time.sleep(0.2)
        return simple()

    async with serving(slow, max_sessions=3, unused_lifetime=60) as (_, client):

        async def load() -> int:
            async with client.get("/") as response:
                return response.status

        assert sorted(await asyncio.gather(*(load() for _ in range(6)))) == [200] * 3 + [503] * 3


async def test_sessions_are_limited() -> None:
    async with serving(simple, max_sessions=2, unused_lifetime=60) as (_, client):
        statuses = []
        for _ in range(4):
            async with client.get("/") as response:
                statuses.append(response.status)
        assert statuses == [200, 200, 503, 503]


async def test_an_unused_session_makes_room_for_another_one() -> None:
    async with serving(simple, max_sessions=1, unused_lifetime=0.5) as (panel, client):
        async with client.get("/") as response:
            assert response.status == 200
        await until(lambda: panel.sessions == 0)
        async with client.get("/") as response:
            assert response.status == 200


async def test_browsers_keep_the_files_whose_address_has_their_version() -> None:
    async with serving(simple) as (_, client):
        page = await (await client.get("/")).text()
        files = re.findall(r'src="/?(static/[^"]*\?v=[^"]+)"', page)
        assert len(files) >= 4
        for file in files:
            response = await client.get(f"/{file}")
            assert response.status == 200
            assert "max-age=31" in response.headers["Cache-Control"]
        unversioned = await client.get(f"/{files[0].partition('?')[0]}")
        assert "Cache-Control" not in unversioned.headers


async def test_panel_listens_on_a_private_socket_and_gets_the_user() -> None:
    users = []

    def page() -> pn.Column:
        users.append(user_of(pn.state.headers))
        return simple()

    listening_before = listening()
    async with serving(page) as (panel, client):
        directory = Path(panel._directory)
        assert owner_and_mode(directory) == (os.getuid(), 0o700)
        assert len(listening() - listening_before) == 1  # the test server's
        async with client.get("/", headers={"X-Dicelab-User": '["x", "mallory"]'}) as response:
            assert response.status == 200
        assert users == [USER]
    assert owner_and_mode(directory) is None


def owner_and_mode(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) if path.exists() else None


def listening() -> set[str]:
    """The local addresses of this machine's listening TCP sockets that belong to this process."""
    inodes = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {fields[1] for fields in lines if fields[3] == "0A" and fields[9] in inodes}
