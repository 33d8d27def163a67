"""Connections of a real server: foreign hosts, incomplete request heads, response headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import ClientSession, web

from otel import metrics
from web.application import add_common_routes, new_application
from web.connection import Runner
from web.hosts import AllowedHosts

TIMEOUT = 0.4  # seconds that a request head may take


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(3 * TIMEOUT)
    return web.Response(text=await request.text())


async def html(request: web.Request) -> web.Response:
    return web.Response(text="<p>", content_type="text/html")


@asynccontextmanager
async def running() -> AsyncIterator[int]:
    app = new_application()
    app.add_routes([web.get("/slow", slow), web.post("/slow", slow), web.get("/html", html)])
    add_common_routes(app, metrics.new_registry(), title="test", description="For tests.")
    runner = Runner(app, AllowedHosts(["test"]), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    closing = asyncio.create_task(runner.close_slow_connections(TIMEOUT))
    try:
        yield site.port
    finally:
        closing.cancel()
        await runner.cleanup()


async def exchange(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts, and return what the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    response = asyncio.ensure_future(_received(reader))
    try:
        async with asyncio.timeout(10):
            for part in parts:
                if response.done():
                    break
                writer.write(part)
                await asyncio.wait([response], timeout=pause)
            return await response
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _received(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with suppress(ConnectionResetError):  # the server closed the connection while a part was on its way
        while chunk := await reader.read(64 * 1024):
            received += chunk
    return received


@pytest.mark.parametrize("host", ["test", "test:80", "localhost:1", "127.0.0.1", "[::1]:8000"])
async def test_allowed_hosts_are_served(host: str) -> None:
    async with running() as port:
        for _ in range(2):  # the second time the host is cached
            response = await exchange(
                port, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert response.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/html", "/nowhere"])
async def test_foreign_hosts_are_refused(path: str) -> None:
    async with running() as port:
        for _ in range(2):
            response = await exchange(port, f"GET {path} HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n".encode())
            assert response.startswith(b"HTTP/1.1 421 ")
            assert b"application/problem+json" in response
            assert b"evil.example" in response


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"GET /healthz HT"],
        [b"GET /healthz HTTP/1.1\r\nHost: test\r\nX-Slow: "],
        [b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\nGET /heal"],
        [b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n", b"GET /heal"],
        [b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n", b"GET /heal"],
    ],
    ids=["nothing", "half a line", "half a header", "half of a second", "a second, half", "half during the first"],
)
async def test_incomplete_request_heads_time_out(parts: list[bytes]) -> None:
    async with running() as port:
        started = asyncio.get_running_loop().time()
        response = await exchange(port, *parts, pause=0.1)
        assert response.count(b"HTTP/1.1 200 ") == (1 if parts and b"\r\n\r\n" in parts[0] else 0)
        assert TIMEOUT <= asyncio.get_running_loop().time() - started < 5


async def test_a_trickling_request_head_times_out() -> None:
    async with running() as port:
        started = asyncio.get_running_loop().time()
        await exchange(port, b"GET /healthz HTTP/1.1\r\nHost: test\r\n", *[b"X: y\r\n"] * 100, pause=0.05)
        assert asyncio.get_running_loop().time() - started < 4


async def test_slow_responses_bodies_and_idle_connections_do_not_time_out() -> None:
    head = b"POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    async with running() as port:
        idle = exchange(port, b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n", last, pause=7 * TIMEOUT)
        body = exchange(port, head + b"a", b"b", pause=2 * TIMEOUT)
        assert [responses.count(b"HTTP/1.1 200 ") for responses in await asyncio.gather(idle, body)] == [2, 1]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(("request_line", "status"), [(b"POST /slow", b"400"), (b"GET /html", b"200")])
async def test_a_body_that_cannot_be_decoded_is_the_clients_error(
    caplog: pytest.LogCaptureFixture, request_line: bytes, status: bytes, encoding: str
) -> None:
    """Whether the handler reads the body or not."""
    head = b" HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\nConnection: close\r\nContent-Encoding: "
    async with running() as port:
        response = await exchange(port, request_line + head + encoding.encode() + b"\r\n\r\nname=bob")
        assert response.startswith(b"HTTP/1.1 " + status)
        if status == b"400":
            assert b"The body of the request cannot be read." in response
        assert (await exchange(port, b"GET /html HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))[9:12] == b"200"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("expected", "status"), [("100-continue", b"200"), ("200-ok", b"417")])
async def test_an_unknown_expectation_is_a_problem(expected: str, status: bytes) -> None:
    async with running() as port:
        head = f"GET /html HTTP/1.1\r\nHost: test\r\nConnection: close\r\nExpect: {expected}\r\n\r\n"
        response = await exchange(port, head.encode())
    assert b"HTTP/1.1 " + status in response
    assert (b"application/problem+json" in response) == (status == b"417")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_probes_may_ask_for_the_head_only(path: str) -> None:
    async with running() as port:
        response = await exchange(port, f"HEAD {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\n")


async def test_pages_have_security_headers() -> None:
    async with running() as port, ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/html") as page:
            assert page.headers["X-Content-Type-Options"] == "nosniff"
            assert page.headers["X-Frame-Options"] == "DENY"
            assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
            assert page.headers["Referrer-Policy"] == "same-origin"
        for path in ("/healthz", "/nowhere", "/metrics"):
            async with session.get(path) as response:
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert "X-Frame-Options" not in response.headers
