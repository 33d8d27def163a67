"""The die-service with a PostgreSQL that is stopped, hangs, runs out of connections, and recovers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg2
import pytest

from lab.signals import total
from tests.support import labs
from tests.support.labs import Held, Lab, get, wait_for


@contextmanager
def connection(lab: Lab) -> Iterator[Any]:
    database = psycopg2.connect(lab.state["postgres"]["url"])
    try:
        with database.cursor() as cursor:
            yield cursor
    finally:
        with suppress(psycopg2.Error):
            database.close()


@contextmanager
def closing_event(event: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


def ready(lab: Lab, service: str = "die-service") -> bool:
    return get(lab.url(service) + "/readyz").status == 200


def pool(lab: Lab) -> tuple[float, float]:
    """The numbers of open and of idle connections in the pool."""
    samples = lab.samples("die-service")
    return (
        total(samples, "database_connection_pool_size", {}),
        total(samples, "database_connection_pool_available", {}),
    )


def said(lab: Lab) -> Counter[tuple[str, str]]:
    """Level and message of the die-service's lines, counted."""
    lab.settle("die-service")
    return Counter((line["level"], line["message"]) for line in lab.logs("die-service"))


PATIENCE = {"DB_POOL_SIZE": "4", "DB_QUERY_TIMEOUT": "0.6", "DB_POOL_TIMEOUT": "0.3"}


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = labs.start(tmp_path_factory.mktemp("database") / "run", 5, roll_delay=0, **PATIENCE)
    yield lab
    lab.stop()


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """The shared lab, once it has recovered from the test before."""
    wait_for(lambda: ready(shared_lab, "frontend") and pool(shared_lab) == (4, 4))
    return shared_lab


def test_database_loss_and_recovery_under_traffic(lab: Lab) -> None:
    said_before = said(lab)
    before = {service: lab.pid(service) for service in lab.services}
    responses: list[tuple[float, int, float, str | None]] = []
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            started = time.monotonic()
            response = get(f"{lab.front}/roll?die=fair")
            responses.append(
                (started, response.status, time.monotonic() - started, response.headers.get("Retry-After"))
            )
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as users, closing_event(stop):
        for _ in range(4):
            users.submit(traffic)
        wait_for(lambda: len(responses) > 20)
        postgres = Held(lab, "postgres")
        wait_for(lambda: not ready(lab))
        gone = time.monotonic()
        assert not ready(lab, "dice-roller")
        assert not ready(lab, "frontend")
        assert get(lab.url("die-service") + "/healthz").status == 200
        assert pool(lab) == (0, 0)
        wait_for(lambda: sum(1 for started, *_ in responses if started > gone) > 40)
        postgres.close()
        back = time.monotonic()
        wait_for(lambda: any(status == 200 and started > back for started, status, _, _ in responses))
        first_good = min(started for started, status, _, _ in responses if status == 200 and started > back)
        wait_for(lambda: ready(lab, "frontend"))
        settled = time.monotonic()
        wait_for(lambda: sum(1 for started, *_ in responses if started > settled) > 20)

    statuses = Counter(status for _, status, _, _ in responses)
    assert set(statuses) == {200, 503}
    assert all(retry for _, status, _, retry in responses if status == 503)
    refused = sorted(seconds for _, status, seconds, _ in responses if status == 503)
    assert refused[len(refused) * 9 // 10] < 1.0
    assert refused[-1] < 3.0  # a client may have waited for a busy machine
    assert {status for started, status, *_ in responses if gone < started < back} == {503}
    assert {status for started, status, *_ in responses if started > settled} == {200}
    assert first_good - back < 2.0
    assert all(os.path.exists(f"/proc/{pid}") for pid in before.values())  # none was restarted
    wait_for(lambda: pool(lab) == (4, 4))
    new = said(lab) - said_before
    assert new["INFO", "Database connected"] == 1
    assert new["ERROR", "Database connection failed"] >= 1
    assert new["ERROR", "Query failed"] >= 1


def test_broken_connections_are_never_acquired(lab: Lab) -> None:
    assert get(f"{lab.front}/roll?die=fair").status == 200
    with connection(lab) as cursor:
        cursor.connection.autocommit = True  # within a transaction, pg_stat_activity does not change
        for _ in range(3):
            wait_for(lambda: pool(lab) == (4, 4))
            # All but the probe's connection: without it the database counts as down for a moment, which gives 503.
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database() AND query <> 'SELECT 1'"
            )
            assert cursor.rowcount >= 4
            # The next requests get new connections, whether or not the service has noticed the loss yet.
            assert [get(f"{lab.front}/roll?die=fair").status for _ in range(6)] == [200] * 6
    wait_for(lambda: pool(lab) == (4, 4))


def test_sequential_requests_reuse_the_last_connection(lab: Lab) -> None:
    def last_used() -> dict[int, Any]:
        cursor.execute(
            "SELECT pid, state_change FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database() AND query <> 'SELECT 1'"
        )
        return dict(cursor.fetchall())

    with connection(lab) as cursor:
        cursor.connection.autocommit = True  # in a transaction the activity would be that of its beginning
        # The check of the pool uses another connection each second: one second or less counts.
        seconds = 2.0
        while seconds > 1.0:
            before, started = last_used(), time.monotonic()
            assert len(before) == 4
            assert {get(lab.url("die-service") + "/dice?identifier=fair").status for _ in range(8)} == {200}
            used, seconds = len(set(last_used().items()) - set(before.items())), time.monotonic() - started
        assert 1 <= used < 4


def test_broken_connections_are_replaced_without_traffic(lab: Lab) -> None:
    def pooled() -> set[int]:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database() AND query <> 'SELECT 1'"
        )
        return {pid for (pid,) in cursor.fetchall()}

    wait_for(lambda: pool(lab) == (4, 4))
    with connection(lab) as cursor:
        cursor.connection.autocommit = True  # in a transaction the activity would be that of its beginning
        before = pooled()
        assert len(before) == 4
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", (list(before),))
        wait_for(lambda: len(pooled() - before) == 4)
        wait_for(lambda: pool(lab) == (4, 4))


def test_a_slow_query_is_cancelled_and_a_full_pool_is_reported(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(5, roll_delay=0, **PATIENCE | {"DB_QUERY_TIMEOUT": "1.5"})
    with connection(lab) as cursor:
        cursor.execute("LOCK TABLE dice IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        with ThreadPoolExecutor(12) as users:
            asked = [users.submit(get, lab.url("die-service") + "/dice?identifier=fair") for _ in range(12)]
            wait_for(lambda: pool(lab) == (4, 0))
            responses = [one.result() for one in asked]
        assert time.monotonic() - started < 5  # at most three times the time of a query, 1.5 s
        statuses = Counter(response.status for response in responses)
        assert statuses[504] >= 4
        assert statuses[503] >= 1
        assert set(statuses) == {503, 504}
        assert all("Retry-After" in response.headers for response in responses if response.status == 503)
        slow = next(response for response in responses if response.status == 504)
        select = next(span for span in lab.trace(slow.trace_id, 2) if span.name == "SELECT")
        assert select.failed
        assert "exception" in select.events
        # No query continues in the database after its client has its response.
        with connection(lab) as other:
            other.connection.autocommit = True  # in a transaction the activity would be that of its beginning

            def waiting() -> bool:
                other.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                    " AND query LIKE 'SELECT identifier%' AND pid <> pg_backend_pid()"
                )
                return bool(other.fetchone()[0] == 0)

            wait_for(waiting, timeout=5)
        assert get(f"{lab.front}/roll?die=fair").status in (503, 504)
        assert ready(lab)
    wait_for(lambda: get(f"{lab.front}/roll?die=fair").status == 200)
    wait_for(lambda: pool(lab) == (4, 4))
    lines = said(lab)
    assert lines["WARNING", "Connection pool exhausted"] == statuses[503] + (
        lab.value("dice-roller", "die_service_requests_total", status="503")
    )
    assert lines["ERROR", "Query failed"] >= statuses[504]


def test_a_frozen_database_is_detected_and_requests_fail_fast(lab: Lab) -> None:
    assert get(f"{lab.front}/roll?die=fair").status == 200
    pid = json.loads((lab.run_dir / "state.json").read_text())["postgres"]["pid"]  # it may have been restarted
    servers = [pid, *children(pid)]
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: not ready(lab), timeout=8)
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            assert get(f"{lab.front}/roll?die=fair").status == 503
            seconds.append(time.monotonic() - started)
        assert sorted(seconds)[1] < 1  # one of three may meet a busy machine
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: get(f"{lab.front}/roll?die=fair").status == 200)


def children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_a_failed_query_is_counted_and_logged(lab: Lab) -> None:
    failures = partial(lab.value, "die-service", "database_queries_total", query_type="get", result="error")
    before = failures()
    with connection(lab) as cursor:
        cursor.execute("ALTER TABLE dice RENAME TO hidden")
        cursor.connection.commit()
        response = get(f"{lab.front}/roll?die=fair")
        assert response.status == 503
        assert "Retry-After" in response.headers
        assert failures() == before + 1
        wait_for(lambda: pool(lab) == (4, 4))
        cursor.execute("ALTER TABLE hidden RENAME TO dice")
        cursor.connection.commit()
    assert get(f"{lab.front}/roll?die=fair").status == 200
    lab.settle("die-service")
    (failed,) = [
        line
        for line in lab.logs("die-service")
        if line.get("trace_id") == response.trace_id and line["message"] == "Query failed"
    ]
    assert failed["db_query_type"] == "get"


def test_seeding_keeps_existing_dice(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(5, roll_delay=0, **PATIENCE)
    with connection(lab) as cursor:
        cursor.execute("UPDATE dice SET faces = '{9}' WHERE identifier = 'fair'")
        cursor.execute("INSERT INTO dice VALUES ('coin', '{0,1}', 0)")
        cursor.connection.commit()
    assert get(f"{lab.front}/roll?die=fair").json == {"roll": 9}
    Held(lab, "postgres").close()
    wait_for(lambda: sum(line["message"] == "Database connected" for line in lab.logs("die-service")) == 2)
    wait_for(lambda: ready(lab))
    assert get(lab.url("die-service") + "/dice").json == {"identifiers": ["coin", "extreme", "fair", "risky"]}
    assert get(f"{lab.front}/roll?die=fair").json == {"roll": 9}
    assert lab.value("die-service", "die_specifications_loaded") == 4
