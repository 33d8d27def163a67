"""The catalogue in a real database."""

from __future__ import annotations

import asyncio

import psycopg2
import pytest
from prometheus_client import CollectorRegistry

from dieservice.catalogue import Specification, UnknownDie
from dieservice.connections import cancel
from dieservice.postgres import PostgresCatalogue
from dieservice.settings import DatabaseSettings
from dieservice.telemetry import DatabaseTelemetry, DiceTelemetry

FAIR = Specification("fair", (1, 2, 3), 0.0)


async def test_identifiers_that_cannot_be_requested_are_not_listed(database: str) -> None:
    registry = CollectorRegistry()
    settings = DatabaseSettings(database, 2, 1.0, 2.0, 2.0)
    catalogue = PostgresCatalogue(settings, [FAIR], DiceTelemetry(registry), DatabaseTelemetry(registry))
    task = asyncio.create_task(catalogue.keep_connected())

    async def connected() -> None:
        async with asyncio.timeout(10):
            while not catalogue.connected:
                await asyncio.sleep(0.01)

    await connected()
    connection = psycopg2.connect(database)
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO dice VALUES (%s, '{1}', 0), (%s, '{1}', 0)", ("ev\u202eil", "new\nline"))
    connection.close()
    assert await catalogue.identifiers() == ["fair"]
    assert registry.get_sample_value("die_specifications_loaded") == 1
    assert (await catalogue.get("fair")).document()["specification"] == {"faces": [1, 2, 3], "error_rate": 0.0}
    with pytest.raises(UnknownDie) as unknown:
        await catalogue.get("loaded")
    assert unknown.value.known == ["fair"]
    await cancel(task)
    assert not catalogue.connected
    assert registry.get_sample_value("database_connection_pool_size") == 0
