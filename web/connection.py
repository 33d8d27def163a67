"""The server's side of one connection: unreadable requests, foreign hosts, and requests that never end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from otel import http, traces
from web import problems
from web.hosts import AllowedHosts
from web.security_headers import NO_SNIFFING

log = logging.getLogger(__name__)

# Long enough for a parameter of 10 kB to reach the handler, which can report what is wrong with it.
MAX_REQUEST_LINE = 32 * 1024
MAX_KNOWN_HOSTS = 1024
MAX_KNOWN_HOST_LENGTH = 256
MAX_LOGGED_HOSTS = 20
TIMEOUT_CHECK_INTERVAL = 0.5  # seconds; a head may take this much longer than its timeout


class RefusedError(Exception):
    """A request that is well-formed HTTP but is refused before any handler."""

    def __init__(self, problem: problems.Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Connection(web.RequestHandler):
    """aiohttp's connection handler, with a timeout for request heads and problem responses to unreadable requests.

    Args:
        app: the application whose metrics count the responses.
        server: aiohttp's server, which knows all connections.
        loop: the running event loop.
    """

    __slots__ = ("_app", "_busy", "_clock", "_head_since", "_more")

    def __init__(self, app: web.Application, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # the access line is written inside the request's span
            max_line_size=MAX_REQUEST_LINE,
        )
        self._app = app
        self._clock = loop.time
        self._busy = False
        self._more = False  # whether data follows the last complete head: a body, or a part of the next head
        self._head_since: float | None = None  # when the wait for a complete head began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._head_since = self._clock()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._more = not data.endswith(b"\r\n\r\n")
        if self._head_since is None and not self._busy:
            self._head_since = self._clock()
        super().data_received(data)

    def request_started(self) -> None:
        """The head of a request is complete."""
        self._busy = True
        self._head_since = None

    def request_finished(self) -> None:
        """The request has its response. A connection idle after a request with a body is timed too."""
        self._busy = False
        if self._more:
            self._head_since = self._clock()

    def close_if_slow(self, timeout: float) -> None:
        """Close the connection if it has waited more than ``timeout`` seconds for a complete request head."""
        if self._head_since is not None and self._clock() - self._head_since > timeout:
            log.debug("Connection closed: no complete request within %g s", timeout, extra={"fields": {}})
            self.force_close()

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log what aiohttp could not handle, but not a malformed body of which no handler needed the rest."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to a request that no middleware has seen."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response had already started")
        with traces.root_span("HTTP"):
            if isinstance(exc, RefusedError):
                problem = exc.problem
            elif status < 500:
                reason = (message or "malformed").strip().splitlines()[0][:200].rstrip(":")
                problem = problems.Problem(status, f"This is not a valid HTTP request: {reason}", kind="bad-request")
            else:
                log.error("Unhandled error", exc_info=exc, extra={"fields": {}})
                problem = problems.Problem(500, "The service failed; its log has the details.", kind="internal")
                traces.record_failure(exc or problem)
            http.set_status(problem.status)
            http.record_unread(self._app, problem.status)
            response = problem.response()
            response.headers.update(NO_SNIFFING)
        response.force_close()
        return response


RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def check_requests(handler: RequestHandler, hosts: AllowedHosts) -> RequestHandler:
    """Refuse requests for foreign hosts, and headers on which the instrumentation would fail.

    It runs before every middleware, because the first middleware is that of the instrumentation.

    Raises:
        RefusedError: from the returned handler; 421 for a foreign host, 400 for a header without a valid value, 417
            for an expectation.
    """
    known_hosts: set[str] = set()
    logged_hosts: set[str] = set()

    def check(request: web.BaseRequest) -> None:
        try:
            host = request.url.host  # parses the Host header
            if "baggage" in request.headers:
                request.headers["baggage"].encode()
        except ValueError as error:
            raise RefusedError(
                problems.Problem(400, "This is not a valid HTTP request: a header is malformed", kind="bad-request")
            ) from error
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            raise RefusedError(problems.Problem(417, "This service meets no expectation but 100-continue."))
        if request.host in known_hosts:
            return
        # HTTP/1.0 has no Host header, and no browser sends a request without one.
        if host not in hosts and "Host" in request.headers:
            name = (host or "")[:MAX_KNOWN_HOST_LENGTH]
            if name not in logged_hosts and len(logged_hosts) < MAX_LOGGED_HOSTS:
                logged_hosts.add(name)
                log.warning("Requests for host %s are refused; see ALLOWED_HOSTS", name, extra={"fields": {}})
            raise RefusedError(
                problems.Problem(421, f"This service accepts no requests for the host {name!r}.", kind="foreign-host")
            )
        if len(known_hosts) < MAX_KNOWN_HOSTS and len(request.host) < MAX_KNOWN_HOST_LENGTH:
            known_hosts.add(request.host)

    async def checked(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request_started()
        try:
            if request.host not in known_hosts or "baggage" in request.headers or "Expect" in request.headers:
                check(request)
            return await handler(request)
        finally:
            connection.request_finished()

    return checked


class Runner(web.AppRunner):
    """Runs an application whose connections are of class :class:`Connection`.

    Args:
        app: the application.
        hosts: the hosts it accepts requests for.
        options: of ``web.AppRunner``.
    """

    def __init__(self, app: web.Application, hosts: AllowedHosts, **options: Any) -> None:
        super().__init__(app, **options)
        self._hosts = hosts

    async def setup(self) -> None:
        await super().setup()
        server = super().server
        assert server is not None
        server.request_handler = check_requests(server.request_handler, self._hosts)

    @property
    def server(self) -> Any:
        """What a site calls to create a connection; aiohttp has no other public way to choose the class."""
        server = super().server
        if server is None:
            return None
        loop = asyncio.get_running_loop()
        return lambda: Connection(self.app, server, loop)

    async def close_slow_connections(self, timeout: float) -> None:
        """Close each connection whose request head takes longer than ``timeout`` seconds; runs until cancelled."""
        server = super().server
        assert server is not None
        while True:
            await asyncio.sleep(min(TIMEOUT_CHECK_INTERVAL, timeout))
            for connection in server.connections:
                if isinstance(connection, Connection):
                    connection.close_if_slow(timeout)
