"""Put a service on its feet and take it down again; the only place that knows the order of middlewares."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp_jinja2
import jinja2
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from otel import http, logs, traces
from web import apidocs, health, problems
from web.settings import EVENT_LOOPS, Environment, ServerSettings, SettingsError
from web.workers import Workers

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
CLIENT_SESSION = web.AppKey("client_session", ClientSession)
# Long enough that a parameter of 10 kB reaches the handler, which can say what is wrong with it.
MAX_REQUEST_LINE = 32 * 1024
MAX_GOOD_HOSTS = 1024


class ServiceSettings(Protocol):
    @property
    def server(self) -> ServerSettings: ...


S = TypeVar("S", bound=ServiceSettings)


def new_application() -> web.Application:
    """An application with the middlewares in their one right order, outermost first.

    The server span (added in front of these by the instrumentation) → the request's count, duration and
    access line → errors to problem answers → the handler.
    """
    return web.Application(middlewares=[http.middleware(), problems.middleware()])


def furnish(
    app: web.Application,
    registry: CollectorRegistry,
    *,
    title: str,
    description: str,
    readiness: health.Readiness = health.always_ready,
    templates: Sequence[Path] = (),
    workers_dir: Path | None = None,
) -> None:
    """Add what every service has: metrics, health, API documents. Call it after the service's own routes."""
    app[health.READINESS] = readiness
    app[health.STOPPING] = asyncio.Event()
    siblings: Workers | None = None
    if workers_dir is not None:
        siblings = Workers(workers_dir, title, registry)
        app.cleanup_ctx.append(siblings.run)
    app.router.add_get("/metrics", _metrics(registry, siblings), allow_head=False)
    app.router.add_get("/healthz", health.healthz, allow_head=False)
    app.router.add_get("/readyz", health.readyz, allow_head=False)
    app.router.add_get("/openapi.json", apidocs.openapi, allow_head=False)
    app.router.add_get("/docs", apidocs.docs, allow_head=False)
    app[apidocs.DOCUMENT] = apidocs.document(app, title, description)
    aiohttp_jinja2.setup(app, loader=jinja2.FileSystemLoader([*templates, TEMPLATES]), autoescape=True)
    http.observe_requests(app, registry)


def _metrics(registry: CollectorRegistry, workers: Workers | None) -> Handler:
    expose = make_aiohttp_handler(registry)

    async def metrics(request: web.Request) -> web.StreamResponse:
        handler = expose if workers is None else make_aiohttp_handler(await workers.gathered())
        try:
            return await handler(request)
        except (TypeError, ValueError) as error:  # an Accept header that names no version of the format
            raise problems.bad_request("The Accept header names no format that metrics come in.") from error

    return metrics


class LastFirst(TCPConnector):
    """Uses the connection again that came back last, where aiohttp takes them in turn.

    What a request touches is then still in the caches, at both ends, and connections that a burst has left over close
    by themselves for want of use.
    """

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        idle = self._conns.get(key)
        if idle and idle[-1][0] is protocol:  # else it was closed
            idle.rotate(1)


def client_session(
    connect_timeout: float, timeout: float, limit: int
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that opens this process's one client session, traced, and closes it.

    Args:
        connect_timeout: seconds to get a connection, waiting for a free one of the pool included.
        timeout: seconds for a whole request.
        limit: connections at the most.
    """

    async def open_and_close(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=LastFirst(limit=limit),
            timeout=ClientTimeout(total=timeout, connect=connect_timeout),
            cookie_jar=DummyCookieJar(),  # it speaks for many users and must never mix them up
            auto_decompress=False,  # bodies are small or passed on as they are
        ) as session:
            traces.instrument_session(session)
            app[CLIENT_SESSION] = session
            yield

    return open_and_close


class _Protocol(web.RequestHandler):
    """aiohttp's connection handler, answering unreadable requests like every other bad request."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Runs where no middleware does: the request could not even be parsed."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was already under way")
        if isinstance(exc, _UnreadableError):
            status, message = 400, "a header makes no sense"
        with traces.root_span("HTTP"):
            traces.set_attribute("http.status_code", status)
            if status >= 500:
                log.error("Unhandled error", exc_info=exc, extra={"fields": {}})
                problem = problems.Problem(500, "The service failed; its log has the details.", kind="internal")
                traces.record_failure(exc or problem)
            else:
                reason = (message or "malformed").strip().splitlines()[0][:200]
                problem = problems.Problem(status, f"This is no HTTP request: {reason}", kind="bad-request")
            assert isinstance(self._manager, _Server)
            http.answered_unread(self._manager.app, status)
            response = problem.response()
        response.force_close()
        return response


class _UnreadableError(Exception):
    """A request whose head is well-formed HTTP and still makes no sense."""


def _read_first(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Refuse what would make the instrumentation, which runs in front of every middleware of ours, fail."""

    good_hosts: set[str] = set()

    # No coroutine of its own: it hands on the handler's.
    def read(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        try:
            if request.host not in good_hosts:
                request.url.host  # noqa: B018  # built of the Host header
                if len(good_hosts) < MAX_GOOD_HOSTS and len(request.host) < 256:
                    good_hosts.add(request.host)
            if "baggage" in request.headers:
                request.headers["baggage"].encode()
        except ValueError as error:
            raise _UnreadableError from error
        return handler(request)

    return read


class _Server(web.Server):
    app: web.Application

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp offers no other way to choose the connection handler
        assert isinstance(server, _Server)
        server.app = self.app
        server.request_handler = _read_first(server.request_handler)
        return server


def _spare_collections() -> None:
    """Let garbage collection look away from what was there at the start, and look less often at what comes after.

    A request allocates a few hundred objects and frees nearly all of them by itself, so that collections, a
    fourteenth of the CPU otherwise, find next to nothing. A thousand requests that are under way hold tens of
    thousands of objects: a threshold below that makes collections look at them again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 5, 5)


def backlog(settings: ServerSettings) -> int:
    """How many connections may wait to be taken.

    A thousand clients that come at once would find aiohttp's 128 places taken, and who is not let in tries again after
    a second. asyncio's own loop takes as many in a row, and once it is out of descriptors fails as often before it
    does anything else; it keeps to the 128.
    """
    return 4096 if settings.event_loop == "uvloop" else 128


async def serve(app: web.Application, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; then requests in flight finish, and everything that was opened closes.

    A second signal ends the waiting.
    """
    runner = _Runner(
        app,
        access_log=None,  # the access line is written inside the request's span instead
        handler_cancellation=True,  # a client that goes away takes its work with it
        shutdown_timeout=settings.shutdown_timeout,
        max_line_size=MAX_REQUEST_LINE,
    )
    stopping = app[health.STOPPING]
    loop = asyncio.get_running_loop()
    forced = loop.create_future()

    def on_signal() -> None:
        if not stopping.is_set():
            stopping.set()
        elif not forced.done():
            forced.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await runner.setup()
        reuse_port = True if settings.workers_dir else None
        site = web.TCPSite(runner, settings.host, settings.port, backlog=backlog(settings), reuse_port=reuse_port)
        await site.start()
        _spare_collections()
        await stopping.wait()
        log.info("Stopping", extra={"fields": {}})
    finally:
        closing = asyncio.ensure_future(runner.cleanup())
        await asyncio.wait([closing, forced], return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            closing.result()


def main(
    name: str,
    read_settings: Callable[[Environment], S],
    create_app: Callable[[S], web.Application],
    *,
    untraced_paths: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run a service to its end and return the exit status: 0 stopped, 1 could not start, 2 bad settings."""
    try:
        settings = read_settings(Environment(environ))
        stop_traces = traces.start(
            name,
            file=settings.server.trace_file,
            untraced_paths=[f"^({'|'.join(sorted(http.UNOBSERVED))})$", *untraced_paths],
            environ=environ,
        )
    except (SettingsError, traces.TracingError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    stop_logs = logs.start(name, settings.server.log_level)
    try:
        with asyncio.Runner(loop_factory=EVENT_LOOPS[settings.server.event_loop]) as runner:
            runner.run(serve(create_app(settings), settings.server))
    except OSError as error:
        log.critical("Cannot serve: %s", error, extra={"fields": {}})
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # here, because behind this function nobody writes log lines any more
        log.critical("Uncaught exception", exc_info=error, extra={"fields": {}})
        return 1
    finally:
        stop_traces()
        stop_logs()
    return 0
