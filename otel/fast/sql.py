"""The span of each SQL query, as the aiopg instrumentation makes it, with its attributes cached."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import aiopg
from opentelemetry import trace
from opentelemetry.instrumentation import aiopg as instrumentation
from opentelemetry.instrumentation.aiopg.version import __version__
from opentelemetry.trace import SpanKind

from otel.fast import conventions
from otel.fast.http_server import MAX_REMEMBERED

SYSTEM = "postgresql"
_LEADING_COMMENT = re.compile(r"^/\*.*?\*/")


def instrument() -> None:
    """Trace the queries of every connection that ``aiopg.connect`` opens from here on."""
    connect = aiopg.connect
    tracers: dict[tuple[Any, ...], _Tracer] = {}

    def trace_connection(connection: Any) -> Any:
        info = connection.raw.info
        target = info.dbname, info.user, info.host, info.port
        if target not in tracers:
            tracers[target] = _Tracer(*target)
        return tracers[target].trace(connection)

    def traced_connect(*args: Any, **kwargs: Any) -> Any:
        return _Opening(connect(*args, **kwargs), trace_connection)

    aiopg.connect = traced_connect


class _Tracer:
    """Makes the spans of the queries to one database."""

    def __init__(self, database: str, user: str, host: str, port: int) -> None:
        self._tracer: Any = trace.get_tracer(instrumentation.__name__, __version__, schema_url=conventions.SQL_SCHEMA)
        self._known: dict[str, tuple[str, dict[str, Any]]] = {}
        self._database = database
        self._attributes = conventions.of_sql(SYSTEM, database, user, host, port)

    def trace(self, connection: Any) -> Any:
        """Trace the cursors that a connection opens."""
        open_cursor = connection.cursor
        connection.cursor = lambda *args, **kwargs: _Opening(open_cursor(*args, **kwargs), self.trace_cursor)
        return connection

    def trace_cursor(self, cursor: Any) -> Any:
        for name in ("execute", "executemany", "callproc"):
            setattr(cursor, name, self._traced(getattr(cursor, name)))
        return cursor

    def _traced(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def execute(*args: Any, **kwargs: Any) -> Any:
            name, attributes = self._described(args[0] if args else None)
            with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
                try:
                    return await method(*args, **kwargs)
                except Exception as error:
                    if conventions.NEW_SQL:
                        span.set_attribute("error.type", type(error).__qualname__)
                    raise

        return execute

    def _described(self, statement: Any) -> tuple[str, dict[str, Any]]:
        """A query's span name and attributes, remembered by its statement."""
        if type(statement) is str and statement in self._known:
            return self._known[statement]
        if isinstance(statement, bytes):
            text = statement.decode(errors="replace")
        else:
            text = statement if isinstance(statement, str) else ""
        words = _LEADING_COMMENT.sub("", text).split() if isinstance(statement, str) else []
        name = words[0] if words else self._database or SYSTEM
        described = name, self._attributes | conventions.statement(text)
        if type(statement) is str and len(self._known) < MAX_REMEMBERED:
            self._known[statement] = described
        return described


class _Opening:
    """The result of ``aiopg.connect()`` and ``connection.cursor()``: awaitable, and an asynchronous context manager."""

    def __init__(self, opening: Any, opened: Callable[[Any], Any]) -> None:
        self._opening = opening
        self._opened = opened

    def __await__(self) -> Generator[Any, None, Any]:
        return self._open().__await__()

    async def _open(self) -> Any:
        return self._opened(await self._opening)

    async def __aenter__(self) -> Any:
        return self._opened(await self._opening.__aenter__())

    async def __aexit__(self, *error: Any) -> Any:
        return await self._opening.__aexit__(*error)
