"""The catalogue in PostgreSQL; it reconnects by itself.

One task, :meth:`PostgresCatalogue.keep_connected`, connects, applies schema and seed, fills the pool, and then runs
``SELECT 1`` every second on a connection of its own. When that fails, the task closes the pool, so that requests are
refused at once, and tries again, with backoff, until the database is back. The task's connection is not traced, because
its queries belong to no request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg2
from aiopg.connection import Connection, Cursor

from dieservice.catalogue import CatalogueTimeout, CatalogueUnavailable, Specification, UnknownDie
from dieservice.connections import (
    LOST,
    Pool,
    PoolClosed,
    PoolExhausted,
    QueryCancelled,
    connect_options,
    execute,
    resolve,
    untraced_connection,
)
from dieservice.settings import DatabaseSettings
from dieservice.telemetry import DatabaseTelemetry, DiceTelemetry
from web.params import is_name

SCHEMA = Path(__file__).parent / "schema.sql"
LIST = 'SELECT identifier FROM dice ORDER BY identifier COLLATE "C"'
GET = "SELECT identifier, faces, error_rate FROM dice WHERE identifier = %s"
SEED = "INSERT INTO dice (identifier, faces, error_rate) VALUES (%s, %s, %s) ON CONFLICT (identifier) DO NOTHING"

PROBE_INTERVAL = 1.0  # seconds between two probes of a database that responds
PROBE_TIMEOUT = 2.0
FIRST_RETRY = 0.1  # seconds before the first retry; doubled after each failure, up to MAX_RETRY
MAX_RETRY = 0.5
# The server cancels a query this many seconds after the query has timed out at the client, so that no query runs on
# without a client.
SERVER_CANCEL_MARGIN = 0.25


class PostgresCatalogue:
    """Dice in PostgreSQL, over a bounded pool of connections.

    Run :meth:`keep_connected` as a task. While the database is not connected every query raises
    :class:`CatalogueUnavailable` at once.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        seed: Sequence[Specification],
        dice: DiceTelemetry,
        telemetry: DatabaseTelemetry,
    ) -> None:
        self._settings = settings
        self._options = connect_options(
            settings.url, settings.connect_timeout, settings.query_timeout + SERVER_CANCEL_MARGIN
        )
        self._seed = seed
        self._dice = dice
        self._telemetry = telemetry
        self._pool: Pool | None = None
        self._probe_now = asyncio.Event()
        self._known: list[str] = []
        self._leak_every = 0
        self._pool_size = settings.pool_size
        telemetry.watch_pool(
            size=lambda: self._pool.size if self._pool else 0,
            available=lambda: self._pool.available if self._pool else 0,
        )

    @property
    def connected(self) -> bool:
        return self._pool is not None

    # --- injected defects, see web/defects.py ---

    def leak(self, every: Any) -> None:
        """Leak every n-th connection of the pool; ``None`` ends this and returns the leaked connections."""
        self._leak_every = int(every or 0)
        if self._pool is not None:
            self._pool.leak(self._leak_every)

    async def resize(self, size: Any) -> None:
        """Change the size of the pool; ``None`` restores the size of the settings."""
        self._pool_size = int(size or self._settings.pool_size)
        if self._pool is not None:
            await self._pool.resize(self._pool_size)

    # --- the catalogue ---

    async def identifiers(self) -> list[str]:
        self._remember(await self._query("list", LIST))
        return list(self._known)

    async def get(self, identifier: str) -> Specification:
        rows = await self._query("get", GET, (identifier,))
        if not rows:
            raise UnknownDie(identifier, self._known)
        name, faces, error_rate = rows[0]
        return Specification(name, tuple(faces), error_rate)

    async def keep_connected(self) -> None:
        """Connect, stay connected, and reconnect, until cancelled."""
        retry = FIRST_RETRY
        while True:
            pool = None
            try:
                options = await resolve(self._options)
                async with untraced_connection(options) as control:
                    await self._prepare(control)
                    pool = Pool(options, self._pool_size, self._settings.pool_timeout)
                    await pool.fill()
                    self._probe_now.clear()
                    self._pool = pool
                    pool.leak(self._leak_every)
                    retry = FIRST_RETRY
                    await self._probe(control, pool)
            except Exception as error:  # any failure: the next attempt may succeed
                self._telemetry.connection_failed(error)
            finally:
                self._pool = None
                if pool is not None:
                    pool.close()
            await asyncio.sleep(retry * random.uniform(0.8, 1.0))
            retry = min(retry * 2, MAX_RETRY)

    # --- one query of a request ---

    async def _query(self, query_type: str, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one SELECT; run it once more, on a new connection, if its connection turns out to be broken."""
        try:
            return await self._query_once(query_type, sql, parameters, retried=False)
        except _BrokenConnection:
            return await self._query_once(query_type, sql, parameters, retried=True)

    async def _query_once(self, query_type: str, sql: str, parameters: Sequence[Any], retried: bool) -> list[Any]:
        pool = self._pool
        if pool is None:
            self._telemetry.query_not_sent(query_type, "not connected")
            raise CatalogueUnavailable("The database is unavailable.")
        cursor = await self._acquire(pool, query_type)
        started = perf_counter()
        try:
            rows = await execute(cursor, sql, parameters, self._settings.query_timeout)
        except (asyncio.TimeoutError, QueryCancelled) as error:
            self._telemetry.query_failed(query_type, perf_counter() - started, "took too long and was cancelled")
            raise CatalogueTimeout("The database did not answer in time.") from error
        except LOST as error:
            # The server announces the end of a connection before it closes it; until then the connection looks usable.
            cursor.connection.close()
            self._probe_now.set()
            if retried or self._pool is not pool:
                self._telemetry.query_failed(query_type, perf_counter() - started, _reason(error))
                raise CatalogueUnavailable("The database connection broke.") from error
            pool.discard_idle()  # most likely broken too
            raise _BrokenConnection from error
        except psycopg2.Error as error:  # the server refuses the query: a missing table, for example
            self._telemetry.query_failed(query_type, perf_counter() - started, _reason(error))
            raise CatalogueUnavailable("The database refused the query.") from error
        finally:
            pool.release(cursor)
        self._telemetry.query_executed(query_type, perf_counter() - started, len(rows))
        return rows

    async def _acquire(self, pool: Pool, query_type: str) -> Cursor:
        started = perf_counter()
        try:
            return await pool.acquire()
        except PoolExhausted as error:
            self._telemetry.pool_exhausted(query_type, perf_counter() - started)
            raise CatalogueUnavailable("All database connections are busy.") from error
        except (asyncio.TimeoutError, PoolClosed, *LOST) as error:
            self._probe_now.set()
            self._telemetry.query_not_sent(query_type, _reason(error))
            raise CatalogueUnavailable("The database cannot be reached.") from error

    # --- the connection to the database as a whole ---

    async def _prepare(self, control: Connection) -> None:
        dsn = control.raw.get_dsn_parameters()
        self._telemetry.connected(dsn.get("host", ""), dsn.get("dbname", ""))
        timeout = self._settings.query_timeout
        async with control.cursor() as cursor:
            await execute(cursor, SCHEMA.read_text(), (), timeout)
            for die in self._seed:
                await execute(cursor, SEED, (die.identifier, list(die.faces), die.error_rate), timeout)
            rows = await execute(cursor, LIST, (), timeout)
        self._remember(rows)
        if len(self._known) < len(rows):
            self._telemetry.names_rejected(len(rows) - len(self._known))
        self._telemetry.seeded(len(self._known))

    async def _probe(self, control: Connection, pool: Pool) -> None:
        """Probe the database every second and after each lost connection; raises when the probe fails."""
        async with control.cursor() as cursor:
            while True:
                await execute(cursor, "SELECT 1", (), PROBE_TIMEOUT)
                with suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(PROBE_INTERVAL):
                        await self._probe_now.wait()
                self._probe_now.clear()
                # The next probe reports a lost database.
                with suppress(asyncio.TimeoutError, psycopg2.Error):
                    await pool.fill()

    def _remember(self, rows: list[Any]) -> None:
        """Keep the identifiers that are valid names: no request can contain another one, and no client may see it."""
        self._known = [identifier for (identifier,) in rows if is_name(identifier)]
        self._dice.loaded(self._known)


class _BrokenConnection(Exception):
    """The connection was broken before the query could run."""


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
