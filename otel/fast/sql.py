"""The span of each SQL query, as the aiopg instrumentation makes it, without two new classes a query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiopg.connection import Cursor
from opentelemetry.instrumentation.aiopg import aiopg_integration
from opentelemetry.instrumentation.aiopg.aiopg_integration import AiopgIntegration, AsyncCursorTracer
from opentelemetry.trace import SpanKind

from otel.fast.http_server import MAX_REMEMBERED
from otel.fast.spans import current

# As anything: what is replaced below is not meant to be.
_aiopg: Any = aiopg_integration


def trim() -> None:
    """Replace the pool's proxy; call it before the instrumentor's ``instrument()``."""
    _aiopg.get_traced_pool_proxy = _traced_pool


def _traced_pool(pool: Any, integration: AiopgIntegration) -> Any:
    """The pool itself, whose connections hand out cursors that trace; the package wraps pool, connection and cursor."""
    tracer = _CursorTracer(integration)

    class TracedCursor(Cursor):  # type: ignore[misc]
        async def execute(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().execute, *args, **kwargs)

        async def executemany(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().executemany, *args, **kwargs)

        async def callproc(self, *args: Any, **kwargs: Any) -> Any:
            return await tracer.traced_execution(self, super().callproc, *args, **kwargs)

    def trace_cursors(connection: Any) -> None:
        make = connection._cursor

        async def traced_cursor(*args: Any, **kwargs: Any) -> Any:
            cursor = await make(*args, **kwargs)
            cursor.__class__ = TracedCursor
            return cursor

        connection._cursor = traced_cursor

    connected = pool._on_connect

    async def on_connect(connection: Any) -> None:
        if connected is not None:
            await connected(connection)
        trace_cursors(connection)

    for connection in pool._free:
        trace_cursors(connection)
    pool._on_connect = on_connect
    return pool


class _CursorTracer(AsyncCursorTracer):
    """The package's tracer of cursors, which remembers what the span of a statement is called and carries."""

    def __init__(self, integration: AiopgIntegration) -> None:
        super().__init__(integration)
        self._known: dict[Any, tuple[str, dict[str, Any]]] = {}

    async def traced_execution(self, cursor: Any, query_method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        statement = args[0] if args else None
        known = self._known.get(statement) if type(statement) is str else None
        if known is None:
            return await self._first(statement, cursor, query_method, args, kwargs)
        name, attributes = known
        with self._db_api_integration._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
            return await query_method(*args, **kwargs)

    async def _first(
        self, statement: Any, cursor: Any, query_method: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        async def watched(*args: Any, **kwargs: Any) -> Any:
            span = current()
            if span is not None and type(statement) is str and len(self._known) < MAX_REMEMBERED:
                self._known[statement] = span.name, span.attributes.copy()
            return await query_method(*args, **kwargs)

        return await super().traced_execution(cursor, watched, *args, **kwargs)
