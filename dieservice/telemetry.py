"""Everything observable of the die-service: its metrics, spans and log lines.

Spans: ``GET /dice`` (server) carries ``die.identifier`` and ``die.found``; ``SELECT`` (from the aiopg
instrumentation) is one query, with its statement but not its parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from otel import logs, metrics, traces
from otel.http import DURATION_BUCKETS

SERVICE = "die-service"
UNKNOWN = "unknown"
QUERY_TYPES = ("list", "get")

_line = logs.events(SERVICE)


class DiceTelemetry:
    """Requests for dice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requested = metrics.Counter(
            "die_specifications_requested_total",
            "Dice requested, by identifier (one that is in the catalogue, else 'unknown').",
            ["identifier"],
            registry=registry,
        )
        self._listed = metrics.Counter(
            "die_list_requests_total", "Requests for the list of all dice.", registry=registry
        )
        self._loaded = metrics.Gauge("die_specifications_loaded", "Dice in the catalogue.", registry=registry)
        self._known: frozenset[str] = frozenset()
        self._requested.labels(UNKNOWN)

    def started(self, port: int, dice: int) -> None:
        _line(logging.INFO, f"Die service started with {dice} dice", port=port, dice=dice)

    def loaded(self, identifiers: list[str]) -> None:
        """Set the dice of the catalogue; only their identifiers become label values."""
        self._known = frozenset(identifiers)
        self._loaded.set(len(identifiers))
        for identifier in identifiers:
            self._requested.labels(identifier)

    def list_requested(self) -> None:
        self._listed.inc()
        _line(logging.INFO, "Dice list requested")

    def die_requested(self, identifier: str) -> None:
        self._requested.labels(identifier if identifier in self._known else UNKNOWN).inc()
        traces.set_attribute("die.identifier", identifier)

    def die_found(self, identifier: str) -> None:
        traces.set_attribute("die.found", True)
        _line(logging.INFO, "Die requested", die_identifier=identifier, die_found=True)

    def die_not_found(self, identifier: str) -> None:
        traces.set_attribute("die.found", False)
        _line(logging.WARNING, "Unknown die", die_identifier=identifier, die_found=False)


class DatabaseTelemetry:
    """The database and its pool of connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queries = metrics.Counter(
            "database_queries_total",
            "Queries, by kind (list or get) and result (success or error); one that gets no connection is an error.",
            ["query_type", "result"],
            registry=registry,
        )
        self._duration = metrics.Histogram(
            "database_query_duration_seconds",
            "Seconds a query took in the database, by kind.",
            ["query_type"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._pool_size = metrics.Gauge(
            "database_connection_pool_size", "Open connections of the pool.", registry=registry
        )
        self._pool_available = metrics.Gauge(
            "database_connection_pool_available",
            "Open connections of the pool that are not in use.",
            registry=registry,
        )
        for query_type in QUERY_TYPES:
            self._queries.labels(query_type, "success")
            self._queries.labels(query_type, "error")
            self._duration.labels(query_type)

    def watch_pool(self, size: Callable[[], int], available: Callable[[], int]) -> None:
        """Set the functions that the gauges call at each scrape for the numbers of open and of idle connections."""
        self._pool_size.set_function(size)
        self._pool_available.set_function(available)

    def connected(self, host: str, database: str) -> None:
        _line(logging.INFO, "Database connected", db_host=host, db_name=database)

    def seeded(self, dice: int) -> None:
        _line(logging.INFO, "Database seeded", db_result_count=dice)

    def names_rejected(self, count: int) -> None:
        _line(logging.WARNING, f"{count} dice left out: control characters in their names")

    def connection_failed(self, error: BaseException) -> None:
        reason = str(error).strip() or type(error).__name__
        _line(logging.ERROR, "Database connection failed", error=reason)

    def query_executed(self, query_type: str, seconds: float, rows: int) -> None:
        self._queries.labels(query_type, "success").inc()
        self._duration.labels(query_type).observe(seconds, metrics.exemplar())
        _line(
            logging.INFO,
            "Query executed",
            db_query_type=query_type,
            db_query_duration_ms=round(seconds * 1000, 3),
            db_result_count=rows,
        )

    def query_failed(self, query_type: str, seconds: float, reason: str) -> None:
        self._queries.labels(query_type, "error").inc()
        self._duration.labels(query_type).observe(seconds, metrics.exemplar())
        _line(
            logging.ERROR,
            "Query failed",
            db_query_type=query_type,
            db_query_duration_ms=round(seconds * 1000, 3),
            error=reason,
        )

    def query_not_sent(self, query_type: str, reason: str) -> None:
        self._queries.labels(query_type, "error").inc()
        _line(logging.ERROR, "Query failed", db_query_type=query_type, error=reason)

    def pool_exhausted(self, query_type: str, waited: float) -> None:
        self._queries.labels(query_type, "error").inc()
        _line(logging.WARNING, "Connection pool exhausted", db_query_type=query_type, waited_ms=round(waited * 1000, 3))
