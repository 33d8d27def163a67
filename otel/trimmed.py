"""The instrumentation packages, without the work that nothing in this lab looks at.

The packages go on making the HTTP and SQL spans, with the same names and attributes. Each function that is replaced
here is one of a module of theirs; the version of each is pinned to one minor release in ``setup.cfg``, and a test
holds the spans against those of the packages as they come. Microseconds a call, measured in isolation:

====================================  ======  =====
server: attributes of the request       31      2.5
server: captured headers, none set      14      0.1
server, client: OTel metric labels       7      0.1
client: URL without its credentials      8      0.3
SQL: proxies of connection and cursor   95      3
====================================  ======  =====
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from aiohttp import web
from opentelemetry.instrumentation import aiohttp_client, aiohttp_server
from opentelemetry.instrumentation.aiopg import aiopg_integration
from opentelemetry.instrumentation.aiopg.aiopg_integration import (
    AiopgIntegration,
    AsyncCursorTracer,
    AsyncProxyObject,
)

MAX_REMEMBERED = 4096
CAPTURED_HEADERS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_"

# As anything: what is assigned to below is not meant to be.
_server: Any = aiohttp_server
_client: Any = aiohttp_client
_aiopg: Any = aiopg_integration

_collect_request_attributes = aiohttp_server.collect_request_attributes
_request_attributes: dict[tuple[Any, ...], dict[str, Any]] = {}


def trim() -> None:
    """Take the work out; once a process, in any order with ``instrument()``."""
    _server.collect_request_attributes = _remembered_request_attributes
    if not any(name.startswith(CAPTURED_HEADERS) for name in os.environ):
        _server.collect_request_headers_attributes = _nothing
        _server.collect_response_headers_attributes = _nothing
    # Labels of OpenTelemetry metrics, which nobody reads: the metrics here are Prometheus's.
    _server._parse_active_request_count_attrs = _nothing
    _server._parse_duration_attrs = _nothing
    _client._filter_semconv_duration_attrs = _nothing
    # A service asks for a handful of URLs.
    _client.redact_url = lru_cache(MAX_REMEMBERED)(_client.redact_url)
    _aiopg.get_traced_connection_proxy = _TracedConnection
    _aiopg.get_traced_cursor_proxy = _TracedCursor


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


def _remembered_request_attributes(request: web.Request, *mode: Any) -> dict[str, Any]:
    """``collect_request_attributes``; what it makes of a request follows from these parts of it alone."""
    resource = request.match_info.route.resource
    key = (
        request.method,
        request.scheme,
        request.host,
        request.raw_path,
        request.headers.get("User-Agent"),
        request.version,
        None if resource is None else resource.canonical,
    )
    attributes = _request_attributes.get(key)
    if attributes is None:
        if len(_request_attributes) >= MAX_REMEMBERED:
            _request_attributes.clear()
        attributes = _request_attributes[key] = _collect_request_attributes(request, *mode)
    return attributes.copy()  # the middleware adds the status to what it is given


# The package makes two new classes for each query, one for its connection and one for its cursor.


class _TracedConnection(AsyncProxyObject):
    def __init__(self, connection: Any, integration: AiopgIntegration) -> None:
        super().__init__(connection)
        self._self_integration = integration

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return _aiopg._ContextManager(self._cursor(*args, **kwargs))

    async def _cursor(self, *args: Any, **kwargs: Any) -> _TracedCursor:
        return _TracedCursor(await self.__wrapped__._cursor(*args, **kwargs), self._self_integration)


class _TracedCursor(AsyncProxyObject):
    def __init__(self, cursor: Any, integration: AiopgIntegration) -> None:
        super().__init__(cursor)
        self._self_tracer = AsyncCursorTracer(integration)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await self._self_tracer.traced_execution(self, self.__wrapped__.execute, *args, **kwargs)

    async def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return await self._self_tracer.traced_execution(self, self.__wrapped__.executemany, *args, **kwargs)

    async def callproc(self, *args: Any, **kwargs: Any) -> Any:
        return await self._self_tracer.traced_execution(self, self.__wrapped__.callproc, *args, **kwargs)
