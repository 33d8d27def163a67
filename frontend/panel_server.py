"""Panel behind our own server: its pages, static files and WebSocket under one public origin.

Panel takes 0.2 s of CPU and more to build a page, so it runs on an event loop in a thread of its own: requests for
rolls and health checks wait for no page. It listens on a Unix socket in a private directory, which only this
process's user can open.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import panel as pn
from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    DummyCookieJar,
    UnixConnector,
    WSCloseCode,
    WSMsgType,
    web,
)
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from panel.io.server import get_server
from yarl import URL

from frontend.explorer.model import TRACE_ID
from frontend.usage import User
from otel import traces
from otel.http import TRACE_ID_HEADER
from web.origin import refuse_foreign_origin
from web.problems import Problem, unavailable

PASSED_TO_PANEL = ("User-Agent", "Accept-Language", "If-None-Match", "If-Modified-Since")
PASSED_TO_BROWSER = ("Content-Type", "Content-Length", "Cache-Control", "ETag", "Last-Modified", "Content-Encoding")
MAX_MESSAGE = 20 * 1024 * 1024  # bytes; Bokeh's own limit
HEARTBEAT = 30.0  # seconds
SUBPROTOCOL = "bokeh"
TRACE = "trace"  # the query parameter that names the trace to show
VERSION = "v"  # the query parameter of a static file that makes browsers cache the file without revalidation
_VERSION = re.compile(r"[0-9A-Za-z.]{1,128}")
USER_HEADER = "X-Dicelab-User"  # the signed-in user, for Panel; set here, never accepted from a browser
# Page loads that may wait while another page is built; the last of them waits some seconds. More are refused.
MAX_WAITING = 16
RETRY_AFTER = 3  # seconds after which a page load that was refused may be tried again
# Ended sessions after which garbage is collected. Each leaves at least 0.2 MB of garbage.
COLLECT_AFTER = 25
UNUSED_SESSION_LIFETIME = 15.0  # seconds that Panel keeps a session without a WebSocket
START_TIMEOUT = 30.0  # seconds


class PanelServer:
    """Serves one page function through an aiohttp application.

    Args:
        page: called in Panel's thread for each browser session; returns what Panel shows.
        max_sessions: the maximum number of browser sessions at a time; each takes about 2 MB.
        unused_lifetime: seconds after which a session without a WebSocket ends.
    """

    def __init__(
        self, page: Callable[[], Any], max_sessions: int, unused_lifetime: float = UNUSED_SESSION_LIFETIME
    ) -> None:
        self._page = self._counted(_without_watchers(page))
        self._max_sessions = max_sessions
        self._unused_lifetime = unused_lifetime
        self._browsers: WeakSet[web.WebSocketResponse] = WeakSet()
        self._one_at_a_time = asyncio.Semaphore(1)
        self._waiting = 0
        self._ended = 0  # sessions that ended since the last garbage collection
        self._directory = ""
        self._server: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="panel", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen, and stop at the end of the block.

        Raises:
            OSError: when Panel cannot start.
        """
        self._directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="dicelab-page-")  # mode 0700
        try:
            self._thread.start()
            await asyncio.to_thread(self._started.wait, START_TIMEOUT)
            if self._loop is None:
                raise OSError(f"the page's server did not start: {self._failure or 'it took too long'}")
            async with ClientSession(
                connector=UnixConnector(str(self._socket), limit=0),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,  # Panel's compressed responses are passed on unchanged
            ) as self._client:
                yield
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(self._thread.join, START_TIMEOUT)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    @property
    def _socket(self) -> Path:
        return Path(self._directory) / "panel.sock"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                logging.getLogger(__name__).critical("The page's server failed", exc_info=error, extra={"fields": {}})
        finally:
            self._started.set()

    async def _serve(self) -> None:
        lifetime = round(self._unused_lifetime * 1000)
        # No websocket_origin is needed: the browser's origin is checked here and not passed on.
        self._server = get_server(
            {"/": self._page},
            unix_socket=str(self._socket),
            title="Dice Lab",
            # A session token contains the user. It is signed, because browsers send it back.
            sign_sessions=True,
            secret_key=secrets.token_bytes(32),
            include_headers=[USER_HEADER],
            unused_session_lifetime_milliseconds=lifetime,
            check_unused_sessions_milliseconds=min(lifetime, 5_000),
        )
        self._server.start()
        # Our own access log already has each of its requests.
        logging.getLogger("tornado.access").setLevel(logging.WARNING)
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await self._stop.wait()
        self._server.stop()

    def _counted(self, page: Callable[[], Any]) -> Callable[[], Any]:
        """A page function whose sessions are counted when they end."""

        def build() -> Any:
            pn.state.on_session_destroyed(self._session_ended)
            return page()

        return build

    def _session_ended(self, _context: Any) -> None:
        # A page is full of reference cycles, and the service leaves few automatic collections (web/tuning.py).
        self._ended += 1
        # A collection takes time in proportion to the pages that are open: the more there are, the rarer it is.
        if self._ended >= max(COLLECT_AFTER, self.sessions):
            self._ended = 0
            gc.collect()

    @property
    def sessions(self) -> int:
        """The number of browser sessions, including pages that are loaded but not connected yet."""
        return len(self._server.get_sessions())

    async def disconnect(self) -> None:
        """Close every browser's connection, so that none delays the shutdown."""
        for browser in list(self._browsers):
            await browser.close(code=WSCloseCode.GOING_AWAY)

    async def page(self, request: web.Request, user: User | None) -> web.StreamResponse:
        """Respond with a page of a new session for ``user``.

        Raises:
            Problem: 503 when too many pages are open or are waiting to be built.
        """
        if self._waiting >= MAX_WAITING or self.sessions >= self._max_sessions:
            raise self._no_room()
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                if self.sessions >= self._max_sessions:
                    raise self._no_room()
                # The next page is built before the browser has read this one, so a slow reader delays nobody else.
                async with self._ask_panel(request, user) as response:
                    return web.Response(status=response.status, headers=_headers(response), body=await response.read())
        finally:
            self._waiting -= 1

    @staticmethod
    def _no_room() -> Problem:
        return unavailable("Too many pages are open or loading.", retry_after=RETRY_AFTER)

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Pass on Panel's response to a request for a static file."""
        async with self._ask_panel(request, None) as panel_response:
            response = web.StreamResponse(status=panel_response.status, headers=_headers(panel_response))
            await response.prepare(request)
            async for chunk in panel_response.content.iter_chunked(64 * 1024):
                await response.write(chunk)
            await response.write_eof()
            return response

    @asynccontextmanager
    async def _ask_panel(self, request: web.Request, user: User | None) -> AsyncIterator[ClientResponse]:
        """Panel's response to a request.

        Raises:
            Problem: 404 or 500 when Panel refuses it, 503 when Panel does not respond or its response breaks off.
        """
        headers = {name: request.headers[name] for name in PASSED_TO_PANEL if name in request.headers}
        try:
            with suppress_http_instrumentation():
                async with self._client.get(
                    self._url("http", request), headers=headers | _user_header(user), timeout=ClientTimeout(total=60)
                ) as response:
                    if response.status >= 400:
                        status, kind = (404, "not-found") if response.status < 500 else (500, "internal")
                        raise Problem(status, "The page has no such part.", kind=kind)
                    yield response
        except (ClientError, asyncio.TimeoutError) as error:
            raise unavailable("The page cannot be made at the moment.", error) from error

    async def websocket(self, request: web.Request, user: User | None) -> web.StreamResponse:
        """Connect the browser's WebSocket with Panel's."""
        refuse_foreign_origin(request)
        offered = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        browser = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE, heartbeat=HEARTBEAT)
        if not browser.can_prepare(request):
            raise Problem(400, "This address accepts WebSocket connections only.", kind="bad-request")
        if len(self._browsers) >= self._max_sessions:
            raise unavailable("Too many pages are open.", retry_after=RETRY_AFTER)
        trace_id, _ = traces.current_ids()
        if trace_id:
            browser.headers[TRACE_ID_HEADER] = trace_id
        try:
            with suppress_http_instrumentation():
                panel = await self._client.ws_connect(
                    self._url("ws", request),
                    protocols=[part for part in offered if part],
                    max_msg_size=MAX_MESSAGE,
                    headers=_user_header(user),
                )
        except (ClientError, asyncio.TimeoutError) as error:
            raise unavailable("The page cannot be connected at the moment.", error) from error
        async with panel:
            await browser.prepare(request)
            self._browsers.add(browser)
            pumps = [asyncio.create_task(_pump(browser, panel)), asyncio.create_task(_pump(panel, browser))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                pass  # the browser disconnected, as most of these connections end
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await browser.close()
                self._browsers.discard(browser)
        return browser

    def _url(self, scheme: str, request: web.Request) -> URL:
        # The path, and only these parameters: in the query Bokeh accepts commands, such as a session to join, and two
        # browsers in one session would act as one user.
        query = ""
        for name, pattern in ((TRACE, TRACE_ID), (VERSION, _VERSION)):
            value = request.query.get(name, "")
            if pattern.fullmatch(value):
                query = f"?{name}={value}"
        return URL(f"{scheme}://panel{request.rel_url.raw_path}{query}", encoded=True)


def _without_watchers(page: Callable[[], Any]) -> Callable[[], Any]:
    """A page function whose pages do not watch Panel's global state.

    Some components, such as ``panel_material_ui.Page``, watch whether any session is busy. Their watcher keeps the page
    and its document, 1.7 MB, until the process ends.
    """

    def watchers() -> list[Any]:
        return [watcher for kinds in pn.state.param.watchers.values() for kind in kinds.values() for watcher in kind]

    def build() -> Any:
        before = watchers()
        view = page()
        for watcher in watchers():
            if not any(watcher is known for known in before):
                pn.state.param.unwatch(watcher)
        return view

    return build


def _headers(response: ClientResponse) -> dict[str, str]:
    """The headers of Panel's response that the browser gets, and the trace id."""
    headers = {name: response.headers[name] for name in PASSED_TO_BROWSER if name in response.headers}
    trace_id, _ = traces.current_ids()
    return headers | {TRACE_ID_HEADER: trace_id} if trace_id else headers


def _user_header(user: User | None) -> dict[str, str]:
    return {USER_HEADER: json.dumps([user.session_id, user.username])} if user else {}


def user_of(headers: dict[str, str]) -> User | None:
    """The user in the header that :class:`PanelServer` has added to the request for a page."""
    value = headers.get(USER_HEADER)
    return User(*json.loads(value)) if value else None


async def _pump(
    source: web.WebSocketResponse | ClientWebSocketResponse, target: web.WebSocketResponse | ClientWebSocketResponse
) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
