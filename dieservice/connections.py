"""Connections to PostgreSQL with aiopg, and the workarounds that aiopg needs.

- **A pool of our own.** aiopg's pool hands out its connections in turn, so that the caches of each server process are
  cold, and takes a lock, a timer and a task for each use: 45 µs a query under load. :class:`Pool` hands out the most
  recently used connection, and waits only when all are in use.
- **One cursor for each connection.** A cursor of a traced connection is expensive to create, so each connection keeps
  its cursor, which runs one query at a time.
- **Cancelled queries.** aiopg reports a query that the server cancelled as a cancellation of our task. :func:`execute`
  distinguishes the two.
- **Host names.** libpq looks them up itself, which blocks the event loop. :func:`resolve` looks them up beforehand.
- **Cancelled tasks.** aiopg waits with ``asyncio.wait_for``, which in Python 3.11 swallows a cancellation that arrives
  together with the result. :func:`cancel` repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiopg
import psycopg2
from aiopg.connection import Connection, Cursor
from aiopg.connection import connect as connect_untraced
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn

# psycopg2 reports a lost server as either of these.
LOST = (psycopg2.OperationalError, psycopg2.InterfaceError)


class QueryCancelled(Exception):
    """The server cancelled the query."""


class PoolExhausted(Exception):
    """No connection of the pool became free before the timeout."""


class PoolClosed(Exception):
    """The pool has been closed."""


class Pool:
    """A bounded pool of connections, each with its cursor; the most recently used one is handed out first.

    Usage::

        pool = Pool(options, size=10, timeout=1.0)
        await pool.fill()
        cursor = await pool.acquire()
        try:
            rows = await execute(cursor, "SELECT 1", (), timeout=2.0)
        finally:
            pool.release(cursor)
        pool.close()

    Args:
        options: arguments of ``aiopg.connect``, which the instrumentation traces.
        size: the maximum number of connections.
        timeout: seconds to wait for a connection, including the time to make one.
    """

    def __init__(self, options: dict[str, Any], size: int, timeout: float) -> None:
        self._options = options | {"timeout": timeout}
        self._size = size
        self._timeout = timeout
        # Each permit stands for one connection that is in use or being made: free permits >= idle connections, always.
        self._permits = asyncio.Semaphore(size)
        self._permits_taken = 0
        self._idle: list[Cursor] = []
        self._in_use: set[Cursor] = set()
        self._closed = False
        self._leak_every = 0  # 0: no connection is leaked
        self._returned = 0
        self._leaked: list[Cursor] = []

    @property
    def size(self) -> int:
        """Connections that are open."""
        return self.available + sum(not cursor.closed for cursor in self._in_use)

    @property
    def available(self) -> int:
        """Connections that are open and not in use."""
        return sum(not cursor.closed for cursor in self._idle)

    async def acquire(self) -> Cursor:
        """The cursor of the most recently used idle connection, or of a new one where there is room for it.

        Raises:
            PoolExhausted: when none becomes free in time.
            PoolClosed: when the pool is closed, even while waiting.
            asyncio.TimeoutError, psycopg2.Error: when a new connection fails.
        """
        deadline = None
        if self._permits.locked():
            deadline = asyncio.get_running_loop().time() + self._timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await self._permits.acquire()
            except asyncio.TimeoutError:
                raise PoolExhausted from None
        else:
            await self._permits.acquire()
        self._permits_taken += 1
        try:
            if self._closed:
                raise PoolClosed("the connection pool was closed")
            cursor = self._pop_idle()
            if cursor is None:
                cursor = await self._connect(deadline)
        except BaseException:
            self._return_permit()
            raise
        self._in_use.add(cursor)
        return cursor

    def release(self, cursor: Cursor) -> None:
        """Give a cursor back. A connection that is closed or inside a transaction is not used again."""
        if self._leak_every:
            self._returned += 1
            if self._returned % self._leak_every == 0:
                self._leaked.append(cursor)
                return
        self._in_use.discard(cursor)
        if not cursor.closed:
            connection = cursor.connection
            if self._closed or connection.raw.get_transaction_status() != TRANSACTION_STATUS_IDLE:
                connection.close()
            else:
                self._idle.append(cursor)
        self._return_permit()

    async def fill(self) -> None:
        """Make connections until there are ``size``.

        Raises:
            asyncio.TimeoutError, psycopg2.Error: when one fails; those made before it stay.
        """
        self._idle[:] = [cursor for cursor in self._idle if not cursor.closed]
        while not self._closed and self._permits_taken + len(self._idle) < self._size:
            await self._permits.acquire()
            self._permits_taken += 1
            try:
                # A task that waited longer got its permit first, and may have made the connection meanwhile.
                if self._permits_taken + len(self._idle) <= self._size:
                    self._idle.append(await self._connect(None))
            finally:
                self._return_permit()

    def leak(self, every: int) -> None:
        """Do not return every n-th released cursor to the pool; 0 ends this and returns the leaked cursors."""
        self._leak_every = every
        if not every:
            leaked, self._leaked = self._leaked, []
            for cursor in leaked:
                self.release(cursor)

    async def resize(self, size: int) -> None:
        """Change the maximum number of connections; shrinking waits until enough connections are released."""
        while self._size > size:
            await self._permits.acquire()
            self._size -= 1
            if (cursor := self._pop_idle()) is not None:
                cursor.connection.close()
        while self._size < size:
            self._size += 1
            self._permits.release()

    def discard_idle(self) -> None:
        """Close all connections that are not in use."""
        while self._idle:
            self._idle.pop().connection.close()

    def close(self) -> None:
        """Close all connections; running queries and waiting ``acquire`` calls fail."""
        self._closed = True
        self.discard_idle()
        for cursor in self._in_use:
            cursor.connection.close()

    def _pop_idle(self) -> Cursor | None:
        while self._idle:
            cursor = self._idle.pop()
            if not cursor.closed:
                return cursor
        return None

    async def _connect(self, deadline: float | None) -> Cursor:
        deadline = deadline or asyncio.get_running_loop().time() + self._timeout
        async with asyncio.timeout_at(deadline):
            connection = await aiopg.connect(**self._options)
        cursor = await connection.cursor()
        if self._closed:
            connection.close()
            raise PoolClosed("the connection pool was closed")
        return cursor

    def _return_permit(self) -> None:
        self._permits_taken -= 1
        self._permits.release()


@asynccontextmanager
async def untraced_connection(options: dict[str, Any]) -> AsyncIterator[Connection]:
    """A connection whose queries get no spans."""
    connection = await connect_untraced(**options)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(cursor: Cursor, sql: str, parameters: Sequence[Any], timeout: float) -> list[Any]:
    """Run one statement and return its rows; an empty list if the statement returns none.

    Raises:
        QueryCancelled: when the server cancelled it.
        asyncio.TimeoutError: after ``timeout`` seconds; the connection is closed then.
        psycopg2.Error: when the server refuses it or is lost; see :data:`LOST`.
    """
    try:
        await cursor.execute(sql, parameters or None, timeout=timeout)
        return await cursor.fetchall() if cursor.description else []
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise QueryCancelled("the server cancelled the query") from None


def connect_options(url: str, timeout: float, statement_timeout: float) -> dict[str, Any]:
    """Arguments of ``aiopg.connect`` for a database.

    Args:
        url: a ``postgresql://`` URL.
        timeout: seconds that a connection attempt may take.
        statement_timeout: seconds after which the server cancels a statement.
    """
    # A startup option, because a SET would be one more round trip, and traced.
    own = parse_dsn(url).get("options", "")
    return {
        "dsn": url,
        "timeout": timeout,
        "options": f"{own} -c statement_timeout={int(statement_timeout * 1000)}".strip(),
        "enable_json": False,
        "enable_hstore": False,
        "enable_uuid": False,
    }


async def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, with the addresses that the server's host name resolves to.

    Raises:
        asyncio.TimeoutError, OSError: when the name cannot be looked up.
    """
    parts = parse_dsn(options["dsn"])
    host = parts.get("host", "")
    if not host or host.startswith("/") or "," in host or "hostaddr" in parts:
        return options
    async with asyncio.timeout(options["timeout"]):
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    # libpq tries the addresses one after the other, and requires as many hosts as addresses.
    return options | {"host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task that uses aiopg, and wait for its end."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
