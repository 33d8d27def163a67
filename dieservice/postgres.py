"""The catalogue in PostgreSQL, and the connection to it that comes back by itself.

One task keeps the database at hand: it connects, applies schema and seed, opens the pool, and then asks
``SELECT 1`` every second on a connection of its own. As soon as that fails the pool is given up, requests
are refused at once instead of one by one finding out, and the task tries again, with backoff, until the
database is back. That connection is not traced: it belongs to no request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import aiopg
import psycopg2
from aiopg.connection import Connection, Cursor
from aiopg.connection import connect as connect_untraced
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn

from dieservice.catalogue import CatalogueTimeout, CatalogueUnavailable, Specification, UnknownDie
from dieservice.settings import DatabaseSettings
from dieservice.telemetry import DatabaseTelemetry, DiceTelemetry

SCHEMA = Path(__file__).parent / "schema.sql"
LIST = 'SELECT identifier FROM dice ORDER BY identifier COLLATE "C"'
GET = "SELECT identifier, faces, error_rate FROM dice WHERE identifier = %s"
SEED = "INSERT INTO dice (identifier, faces, error_rate) VALUES (%s, %s, %s) ON CONFLICT (identifier) DO NOTHING"

PROBE_INTERVAL = 1.0  # seconds between two looks at a database that answers
PROBE_TIMEOUT = 2.0
FIRST_RETRY = 0.1  # seconds; doubled with each failure up to
LAST_RETRY = 1.0
# The server cancels a query itself this much later than the client gives up on it, in seconds, so that
# nothing runs on for a client that no longer waits.
SERVER_CANCEL_MARGIN = 0.25
# psycopg2 reports a lost server as either of these.
_LOST = (psycopg2.OperationalError, psycopg2.InterfaceError)


class PostgresCatalogue:
    """Dice in PostgreSQL, over a bounded pool of connections.

    Run :meth:`keep_connected` beside it; until that has connected, and whenever the database is away,
    every question raises :class:`CatalogueUnavailable` at once.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        seed: Sequence[Specification],
        dice: DiceTelemetry,
        telemetry: DatabaseTelemetry,
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._dice = dice
        self._telemetry = telemetry
        self._pool: Any = None  # an aiopg.Pool
        # The pool's connections, and the cursor that each uses again and again once it has one.
        self._cursors: dict[Connection, Cursor | None] = {}
        self._in_use = 0
        self._suspected_lost = asyncio.Event()
        self._known: list[str] = []
        telemetry.watch_pool(self._open_connections, self._free_connections)

    @property
    def connected(self) -> bool:
        return self._pool is not None

    async def identifiers(self) -> list[str]:
        rows = await self._query("list", LIST)
        self._remember([row[0] for row in rows])
        return list(self._known)

    async def get(self, identifier: str) -> Specification:
        rows = await self._query("get", GET, (identifier,))
        if not rows:
            raise UnknownDie(identifier, self._known)
        name, faces, error_rate = rows[0]
        return Specification(name, tuple(faces), error_rate)

    async def keep_connected(self) -> None:
        """Connect, stay connected, and connect again, until cancelled."""
        retry = FIRST_RETRY
        while True:
            try:
                address = await self._resolved()
                async with _closing(connect_untraced(**self._options(address))) as control:
                    await self._prepare(control)
                    async with self._open_pool(address):
                        retry = FIRST_RETRY
                        await self._watch(control)
            except Exception as error:  # whatever it is, giving up for good would be worse
                self._telemetry.connection_failed(error)
            await asyncio.sleep(retry * random.uniform(0.8, 1.0))
            retry = min(retry * 2, LAST_RETRY)

    # --- one query of a request ---

    async def _query(self, query_type: str, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one SELECT; once more, on a new connection, if the one it was given turns out to be broken."""
        try:
            return await self._query_once(query_type, sql, parameters, retried=False)
        except _BrokenConnection:
            return await self._query_once(query_type, sql, parameters, retried=True)

    async def _query_once(self, query_type: str, sql: str, parameters: Sequence[Any], retried: bool) -> list[Any]:
        pool = self._pool
        if pool is None:
            self._telemetry.query_not_sent(query_type, "not connected")
            raise CatalogueUnavailable("The database is away.")
        connection = await self._acquire(pool, query_type)
        self._in_use += 1
        started = perf_counter()
        try:
            cursor = self._cursors.get(connection)
            if cursor is None or cursor.closed:
                cursor = self._cursors[connection] = await connection.cursor()
            rows = await _execute(cursor, sql, parameters, self._settings.query_timeout)
        except (asyncio.TimeoutError, QueryCancelled) as error:
            self._telemetry.query_failed(query_type, perf_counter() - started, "took too long and was cancelled")
            raise CatalogueTimeout("The database did not answer in time.") from error
        except _LOST as error:
            # A server that ends a connection says so before it hangs up: until then this one looks sound.
            connection.close()
            self._suspected_lost.set()
            if retried or self._pool is not pool:
                self._telemetry.query_failed(query_type, perf_counter() - started, _reason(error))
                raise CatalogueUnavailable("The database connection broke.") from error
            # Its neighbours were most likely cut off with it.
            await pool.clear()
            raise _BrokenConnection from error
        except psycopg2.Error as error:  # the server is there and refuses: the table is gone, say
            self._telemetry.query_failed(query_type, perf_counter() - started, _reason(error))
            raise CatalogueUnavailable("The database refused the query.") from error
        finally:
            self._in_use -= 1
            _give_back(pool, connection)
        self._telemetry.query_executed(query_type, perf_counter() - started, len(rows))
        return rows

    async def _acquire(self, pool: aiopg.Pool, query_type: str) -> Connection:
        connection = _taken_at_once(pool)
        if connection is not None:
            if self._cursors.get(connection) is not None:
                return connection
            _give_back(pool, connection)  # its first use goes through aiopg, which the instrumentation wraps
        started = perf_counter()
        try:
            return await pool.acquire()
        except asyncio.TimeoutError as error:
            if self._in_use >= self._settings.pool_size:
                self._telemetry.pool_exhausted(query_type, perf_counter() - started)
                raise CatalogueUnavailable("All database connections are busy.") from error
            failure: Exception = error
        except (*_LOST, RuntimeError) as error:  # RuntimeError: the pool was given up while this one waited
            failure = error
        self._suspected_lost.set()
        self._telemetry.query_not_sent(query_type, _reason(failure))
        raise CatalogueUnavailable("The database cannot be reached.") from failure

    # --- the connection to the database as a whole ---

    async def _prepare(self, control: Connection) -> None:
        dsn = control.raw.get_dsn_parameters()
        self._telemetry.connected(dsn.get("host", ""), dsn.get("dbname", ""))
        timeout = self._settings.query_timeout
        async with control.cursor() as cursor:
            await _execute(cursor, SCHEMA.read_text(), (), timeout)
            for die in self._seed:
                await _execute(cursor, SEED, (die.identifier, list(die.faces), die.error_rate), timeout)
            self._remember([row[0] for row in await _execute(cursor, LIST, (), timeout)])
        self._telemetry.seeded(len(self._known))

    @asynccontextmanager
    async def _open_pool(self, address: dict[str, str]) -> AsyncIterator[None]:
        settings = self._settings
        pool = await aiopg.create_pool(
            minsize=settings.pool_size,
            maxsize=settings.pool_size,
            on_connect=self._connection_made,
            **(self._options(address) | {"timeout": settings.pool_timeout}),
        )
        self._suspected_lost.clear()
        self._pool = pool
        try:
            yield
        finally:
            self._pool = None
            pool.terminate()
            self._cursors.clear()
            # Everything that still holds a connection has just lost it and will give it back.
            with suppress(asyncio.TimeoutError):
                async with asyncio.timeout(settings.query_timeout):
                    await pool.wait_closed()

    async def _watch(self, control: Connection) -> None:
        """Ask whether the database is there, every second and whenever a query doubts it; raises once it is not."""
        async with control.cursor() as cursor:
            while True:
                await _execute(cursor, "SELECT 1", (), PROBE_TIMEOUT)
                with suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(PROBE_INTERVAL):
                        await self._suspected_lost.wait()
                self._suspected_lost.clear()
                await self._replace_broken()

    async def _replace_broken(self) -> None:
        """Take a connection as aiopg does it, which looks at all of them and makes new ones for those that broke."""
        if self._in_use < self._settings.pool_size:
            # Whoever needs one and gets none says so.
            with suppress(asyncio.TimeoutError, QueryCancelled, psycopg2.Error):
                await self._pool.release(await self._pool.acquire())

    async def _connection_made(self, connection: Connection) -> None:
        limit_ms = int((self._settings.query_timeout + SERVER_CANCEL_MARGIN) * 1000)
        async with connection.cursor() as cursor:
            await _execute(cursor, "SET statement_timeout = %s", (limit_ms,), self._settings.connect_timeout)
        self._cursors = {one: kept for one, kept in self._cursors.items() if not one.closed}
        self._cursors[connection] = None  # no cursor yet: from here on it is traced, if anything is

    def _options(self, address: dict[str, str]) -> dict[str, Any]:
        return {
            "dsn": self._settings.url,
            "timeout": self._settings.connect_timeout,
            "enable_json": False,
            "enable_hstore": False,
            "enable_uuid": False,
            **address,
        }

    async def _resolved(self) -> dict[str, str]:
        """The server's address, looked up here because libpq would block the event loop doing so."""
        parts = parse_dsn(self._settings.url)
        host = parts.get("host", "")
        if not host or host.startswith("/") or "," in host or "hostaddr" in parts:
            return {}
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._settings.connect_timeout):
            found = await loop.getaddrinfo(host, None)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        # libpq tries one after the other, and wants as many hosts as addresses.
        return {"host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}

    def _remember(self, identifiers: list[str]) -> None:
        self._known = identifiers
        self._dice.loaded(identifiers)

    def _open_connections(self) -> int:
        return sum(1 for connection in self._cursors if not connection.closed)

    def _free_connections(self) -> int:
        return max(0, self._open_connections() - self._in_use)


class QueryCancelled(Exception):
    """The server cancelled the query."""


class _BrokenConnection(Exception):
    """The connection was broken before the query could run."""


def _taken_at_once(pool: aiopg.Pool) -> Connection | None:
    """The connection that was used last, if one is free, nobody waits for one and none is to be made.

    aiopg takes a lock, a timer and a look at every connection for this, and a task to give one back: some 45 µs a query
    under load. And it hands out its connections in turn, so that each of the server's processes finds its caches cold.
    """
    free = pool._free
    if not free or pool._closing or pool._cond.locked() or pool._cond._waiters or pool.size < pool.minsize:
        return None
    if free[-1].closed:
        return None
    connection = free.pop()
    pool._used.add(connection)
    return connection


def _give_back(pool: aiopg.Pool, connection: Connection) -> None:
    if (
        pool._cond.locked()
        or pool._cond._waiters
        or pool._closing
        or connection.closed
        or connection.raw.get_transaction_status() != TRANSACTION_STATUS_IDLE
    ):
        pool.release(connection)
    else:
        pool._used.remove(connection)
        pool._free.append(connection)


async def _execute(cursor: Cursor, sql: str, parameters: Sequence[Any], timeout: float) -> list[Any]:
    """Run one statement and return its rows, none for a statement that has none.

    Raises:
        QueryCancelled: when the server cancelled it.
        asyncio.TimeoutError: after ``timeout`` seconds; the connection is closed then.
    """
    try:
        await cursor.execute(sql, parameters or None, timeout=timeout)
        return await cursor.fetchall() if cursor.description else []
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # aiopg reports a query that the server cancelled as if our task had been cancelled.
        raise QueryCancelled("the server cancelled the query") from None


@asynccontextmanager
async def _closing(connecting: Any) -> AsyncIterator[Connection]:
    connection = await connecting
    try:
        yield connection
    finally:
        await connection.close()


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
