"""The span of each SQL query, as the aiopg instrumentation makes it, without finding out each time what it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.aiopg import aiopg_integration
from opentelemetry.instrumentation.aiopg.aiopg_integration import AiopgIntegration, AsyncCursorTracer
from opentelemetry.trace import SpanKind

from otel.fast.http_server import MAX_REMEMBERED
from otel.fast.spans import current

# Any: the class replaced below is not meant to be.
_aiopg: Any = aiopg_integration


def trim() -> None:
    """Replace the tracer of cursors; call it before any connection is made."""
    _aiopg.AsyncCursorTracer = _CursorTracer


class _CursorTracer(AsyncCursorTracer):
    """The package's tracer of one cursor, which remembers what the span of a statement is called and carries."""

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
