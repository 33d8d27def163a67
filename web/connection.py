"""The server's side of one connection, and requests on it that cannot be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from otel import http, traces
from web import problems

log = logging.getLogger(__name__)

# Long enough that a parameter of 10 kB reaches the handler, which can say what is wrong with it.
MAX_REQUEST_LINE = 32 * 1024
MAX_KNOWN_HOSTS = 1024
MAX_KNOWN_HOST_LENGTH = 256


class UnreadableError(Exception):
    """The head of a request is well-formed HTTP, but a header has no valid value."""


class Connection(web.RequestHandler):
    """aiohttp's connection handler, which answers unreadable requests like every other bad request.

    Args:
        app: whose metrics count the answers.
        server: aiohttp's server, which knows all connections.
        loop: the running event loop.
    """

    __slots__ = ("_app",)

    def __init__(self, app: web.Application, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # the access line is written inside the request's span
            max_line_size=MAX_REQUEST_LINE,
        )
        self._app = app

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that no middleware has seen, because it could not be parsed."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was already under way")
        if isinstance(exc, UnreadableError):
            status, message = 400, "a header makes no sense"
        with traces.root_span("HTTP"):
            http.set_status(status)
            if status >= 500:
                log.error("Unhandled error", exc_info=exc, extra={"fields": {}})
                problem = problems.Problem(500, "The service failed; its log has the details.", kind="internal")
                traces.record_failure(exc or problem)
            else:
                reason = (message or "malformed").strip().splitlines()[0][:200]
                problem = problems.Problem(status, f"This is no HTTP request: {reason}", kind="bad-request")
            http.answered_unread(self._app, status)
            response = problem.response()
        response.force_close()
        return response


RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def check_headers(handler: RequestHandler) -> RequestHandler:
    """Refuse headers on which the instrumentation, which runs in front of every middleware of ours, would fail.

    Raises:
        UnreadableError: from the returned handler, for a ``Host`` or ``baggage`` header without a valid value.
    """
    valid_hosts: set[str] = set()

    # A plain function, which returns the handler's coroutine: one coroutine less for each request.
    def checked(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        try:
            if request.host not in valid_hosts:
                request.url.host  # noqa: B018  # parses the Host header
                if len(valid_hosts) < MAX_KNOWN_HOSTS and len(request.host) < MAX_KNOWN_HOST_LENGTH:
                    valid_hosts.add(request.host)
            if "baggage" in request.headers:
                request.headers["baggage"].encode()
        except ValueError as error:
            raise UnreadableError from error
        return handler(request)

    return checked


class Runner(web.AppRunner):
    """Runs an application whose connections are of class :class:`Connection`."""

    async def setup(self) -> None:
        await super().setup()
        server = super().server
        assert server is not None
        server.request_handler = check_headers(server.request_handler)

    @property
    def server(self) -> Any:
        """What a site calls for each new connection; aiohttp has no other public way to choose the class."""
        server = super().server
        if server is None:
            return None
        loop = asyncio.get_running_loop()
        return lambda: Connection(self.app, server, loop)
