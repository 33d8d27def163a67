"""The client session with which a service calls others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

from otel import traces

CLIENT_SESSION = web.AppKey("client_session", ClientSession)


class MostRecentFirstConnector(TCPConnector):
    """Reuses the most recently returned connection; aiohttp reuses the least recently returned one.

    Its memory is then still in the CPU caches of both processes, and connections left over from a burst time out
    because nothing uses them.

    Private to aiohttp: ``_release`` and ``_conns``. A connector has no public setting for the order of its pool.
    """

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        idle = self._conns.get(key)
        if idle and idle[-1][0] is protocol:  # else it was closed
            idle.rotate(1)


def client_session(
    connect_timeout: float, timeout: float, limit: int
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that opens this process's one client session, traced, and closes it.

    Args:
        connect_timeout: seconds to get a connection, including the wait for a free one of the pool.
        timeout: seconds for a whole request.
        limit: the most connections.
    """

    async def open_and_close(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=MostRecentFirstConnector(limit=limit),
            timeout=ClientTimeout(total=timeout, connect=connect_timeout),
            cookie_jar=DummyCookieJar(),  # requests of many users share the session: cookies must not
            auto_decompress=False,  # bodies are small or passed on unchanged
        ) as session:
            traces.instrument_session(session)
            app[CLIENT_SESSION] = session
            yield

    return open_and_close
