"""The client session with which a service calls others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from otel import traces

CLIENT_SESSION = web.AppKey("client_session", ClientSession)


def client_session(
    connect_timeout: float, timeout: float, limit: int
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that opens this process's one client session, traced, and closes it.

    Args:
        connect_timeout: seconds to get a connection, including the wait for a free one of the pool.
        timeout: seconds for a whole request.
        limit: the maximum number of connections.
    """

    async def open_and_close(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=TCPConnector(limit=limit),
            timeout=ClientTimeout(total=timeout, connect=connect_timeout),
            cookie_jar=DummyCookieJar(),  # many users share the session, and must not share cookies
            auto_decompress=False,  # bodies are small or passed on unchanged
        ) as session:
            app[CLIENT_SESSION] = traces.instrument_session(session)
            yield

    return open_and_close
