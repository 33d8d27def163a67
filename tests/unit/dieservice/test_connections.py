"""The connection pool and its helpers, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg2
import pytest
from aiopg.connection import Cursor

from dieservice.connections import (
    LOST,
    Pool,
    PoolClosed,
    PoolExhausted,
    QueryCancelled,
    cancel,
    connect_options,
    execute,
    resolve,
)

SIZE = 3
WAIT = 0.3  # seconds
MakePool = Callable[..., Any]


@pytest.fixture
def pool_of(database: str) -> MakePool:
    @asynccontextmanager
    async def make(size: int = SIZE, timeout: float = WAIT, statement_timeout: float = 5.0) -> AsyncIterator[Pool]:
        pool = Pool(connect_options(database, 5.0, statement_timeout), size, timeout)
        await pool.fill()
        yield pool
        pool.close()
        assert (pool.size, pool.available) == (0, 0)

    return make


async def value(cursor: Cursor, sql: str) -> Any:
    ((found,),) = await execute(cursor, sql, (), 5.0)
    return found


def terminate(database: str, processes: list[int]) -> None:
    """End server processes as an administrator would."""
    connection = psycopg2.connect(database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS pid", (processes,))
        assert cursor.fetchall() == [(True,)] * len(processes)
    connection.close()


async def test_the_most_recently_used_connection_is_acquired(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        first, second = await pool.acquire(), await pool.acquire()
        assert (pool.size, pool.available) == (SIZE, SIZE - 2)
        pool.release(second)
        pool.release(first)
        assert await pool.acquire() is first
        assert await pool.acquire() is second
        assert await pool.acquire() not in (first, second)
        assert (pool.size, pool.available) == (SIZE, 0)


async def test_a_full_pool_refuses_after_its_timeout(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        taken = [await pool.acquire() for _ in range(SIZE)]
        started = asyncio.get_running_loop().time()
        with pytest.raises(PoolExhausted):
            await pool.acquire()
        assert asyncio.get_running_loop().time() - started >= WAIT
        assert (pool.size, pool.available) == (SIZE, 0)
        for cursor in taken:
            pool.release(cursor)
        assert (pool.size, pool.available) == (SIZE, SIZE)


async def test_a_pool_that_is_filled_while_tasks_wait_keeps_its_size(pool_of: MakePool) -> None:
    async with pool_of(size=2, timeout=10.0) as pool:
        lost, used = await pool.acquire(), await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)

        async def give_back() -> Cursor:
            cursor = await waiting
            pool.release(used)
            return cursor

        giving_back = asyncio.create_task(give_back())
        lost.connection.close()
        pool.release(lost)  # its permit goes to the waiting task; this task fills the pool before that one runs
        await pool.fill()
        pool.release(await giving_back)
        assert (pool.size, pool.available) == (2, 2)


async def test_waiters_get_connections_in_order(pool_of: MakePool) -> None:
    async with pool_of(size=1, timeout=10.0) as pool:
        cursor = await pool.acquire()
        served: list[int] = []

        async def use(index: int) -> None:
            taken = await pool.acquire()
            served.append(index)
            pool.release(taken)

        waiting = [asyncio.create_task(use(index)) for index in range(5)]
        await asyncio.sleep(0)
        assert served == []
        pool.release(cursor)
        await asyncio.gather(*waiting)
        assert served == [0, 1, 2, 3, 4]


async def test_a_cancelled_waiter_frees_its_slot(pool_of: MakePool) -> None:
    async with pool_of(timeout=10.0) as pool:
        taken = [await pool.acquire() for _ in range(SIZE)]
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(4)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        for cursor in taken:
            pool.release(cursor)
        assert len({await pool.acquire() for _ in range(SIZE)}) == SIZE


async def test_broken_connections_are_replaced(pool_of: MakePool, database: str) -> None:
    async with pool_of() as pool:
        cursors = [await pool.acquire() for _ in range(SIZE)]
        processes = [await value(cursor, "SELECT pg_backend_pid()") for cursor in cursors]
        for cursor in cursors[1:]:
            pool.release(cursor)
        await asyncio.to_thread(terminate, database, processes)
        async with asyncio.timeout(5):
            while not all(cursor.closed for cursor in cursors):
                await asyncio.sleep(0.01)
        assert (pool.size, pool.available) == (0, 0)
        pool.release(cursors[0])
        # acquire() creates a connection at once, the next fill() the others.
        new = await pool.acquire()
        assert await value(new, "SELECT pg_backend_pid()") not in processes
        assert (pool.size, pool.available) == (1, 0)
        await pool.fill()
        assert (pool.size, pool.available) == (SIZE, SIZE - 1)
        pool.release(new)
        await pool.fill()
        assert (pool.size, pool.available) == (SIZE, SIZE)


async def test_fill_counts_connections_in_use(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        taken = await pool.acquire()
        pool.discard_idle()
        assert (pool.size, pool.available) == (1, 0)
        more, _, _ = await asyncio.gather(pool.acquire(), pool.fill(), pool.fill())
        assert (pool.size, pool.available) == (SIZE, SIZE - 2)
        pool.release(taken)
        pool.release(more)


async def test_a_connection_inside_a_transaction_is_not_reused(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        cursor = await pool.acquire()
        await execute(cursor, "BEGIN", (), 5.0)
        pool.release(cursor)
        assert cursor.closed
        assert (pool.size, pool.available) == (SIZE - 1, SIZE - 1)


async def test_close_ends_queries_and_waiters(pool_of: MakePool) -> None:
    async with pool_of(size=1, timeout=10.0) as pool:
        cursor = await pool.acquire()
        query = asyncio.create_task(execute(cursor, "SELECT pg_sleep(30)", (), 40.0))
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0.05)
        pool.close()
        with pytest.raises(LOST):
            await query
        pool.release(cursor)
        with pytest.raises(PoolClosed):
            await waiting
        with pytest.raises(PoolClosed):
            await pool.acquire()


async def test_a_failed_connection_frees_its_slot(pool_of: MakePool, tmp_path: Any) -> None:
    nowhere = connect_options(f"postgresql://someone@/dice?host={tmp_path}", 1.0, 1.0)
    pool = Pool(nowhere, 1, WAIT)
    for _ in range(3):  # a leaked permit would make the second attempt wait
        with pytest.raises(psycopg2.OperationalError):
            await pool.acquire()
        with pytest.raises(psycopg2.OperationalError):
            await pool.fill()
    assert (pool.size, pool.available) == (0, 0)


async def test_a_query_cancelled_by_the_server_does_not_cancel_the_task(pool_of: MakePool) -> None:
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
    async with pool_of(statement_timeout=0.1) as pool:
        cursor = await pool.acquire()
        with pytest.raises(QueryCancelled):
            await execute(cursor, "SELECT pg_sleep(30)", (), 40.0)
        pool.release(cursor)
        assert pool.available == SIZE  # the connection is still usable
        assert await value(await pool.acquire(), "SELECT 1") == 1
    assert len(logged) == 1


async def test_cancelling_a_task_closes_its_connection(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        cursor = await pool.acquire()
        query = asyncio.create_task(execute(cursor, "SELECT pg_sleep(30)", (), 40.0))
        await asyncio.sleep(0.05)
        await cancel(query)
        assert query.cancelled()
        pool.release(cursor)
        assert (pool.size, pool.available) == (SIZE - 1, SIZE - 1)


async def test_the_statement_timeout_is_added_to_the_options_of_the_url(database: str) -> None:
    options = connect_options(f"{database}&options=-c%20work_mem%3D5MB", 5.0, 2.25)
    pool = Pool(options, 1, 1.0)
    cursor = await pool.acquire()
    assert await value(cursor, "SHOW statement_timeout") == "2250ms"
    assert await value(cursor, "SHOW work_mem") == "5MB"
    pool.close()


async def test_host_names_are_resolved_before_connecting() -> None:
    resolved = await resolve(connect_options("postgresql://someone@localhost/dice", 5.0, 1.0))
    addresses = resolved["hostaddr"].split(",")
    assert {"127.0.0.1", "::1"} & set(addresses)
    assert resolved["host"].split(",") == ["localhost"] * len(addresses)
    for url in (
        "postgresql://u@/dice?host=/run/postgresql",
        "postgresql://u@a,b/dice",
        "postgresql://u@a/d?hostaddr=::1",
    ):
        options = connect_options(url, 5.0, 1.0)
        assert await resolve(options) == options


async def test_a_leak_keeps_connections_until_it_is_switched_off(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        pool.leak(2)
        for _ in range(2 * SIZE):
            pool.release(await pool.acquire())
        assert (pool.size, pool.available) == (SIZE, 0)
        with pytest.raises(PoolExhausted):
            await pool.acquire()
        pool.leak(0)
        assert (pool.size, pool.available) == (SIZE, SIZE)
        pool.release(await pool.acquire())
        assert (pool.size, pool.available) == (SIZE, SIZE)


async def test_a_pool_can_be_made_smaller_and_larger_again(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        taken = await pool.acquire()
        shrinking = asyncio.ensure_future(pool.resize(1))
        await asyncio.sleep(0.01)
        assert shrinking.done()  # two were idle
        assert (pool.size, pool.available) == (1, 0)
        with pytest.raises(PoolExhausted):
            await pool.acquire()
        pool.release(taken)
        await pool.fill()
        assert (pool.size, pool.available) == (1, 1)
        await pool.resize(SIZE)
        await pool.fill()
        assert (pool.size, pool.available) == (SIZE, SIZE)


async def test_a_pool_shrinks_once_connections_are_released(pool_of: MakePool) -> None:
    async with pool_of() as pool:
        taken = [await pool.acquire() for _ in range(SIZE)]
        shrinking = asyncio.ensure_future(pool.resize(1))
        for cursor in taken[1:]:
            await asyncio.sleep(0.01)
            assert not shrinking.done()
            pool.release(cursor)
        await shrinking
        pool.release(taken[0])
        assert (pool.size, pool.available) == (1, 1)
