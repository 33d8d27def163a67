"""Panel behind our own server: its pages, static files and WebSocket under one public origin.

Panel listens on a loopback port of its own, in the same event loop; nothing but this module talks to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from aiohttp import ClientError, ClientSession, ClientTimeout, ClientWebSocketResponse, WSCloseCode, WSMsgType, web
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from panel.io.server import get_server
from yarl import URL

from frontend.explorer.model import TRACE_ID
from frontend.origin import refuse_foreign_origin
from otel import traces
from otel.http import TRACE_ID_HEADER
from web.problems import Problem, unavailable

PASSED_TO_PANEL = ("Cookie", "User-Agent", "Accept-Language", "If-None-Match", "If-Modified-Since")
PASSED_TO_BROWSER = ("Content-Type", "Content-Length", "Cache-Control", "ETag", "Last-Modified", "Content-Encoding")
MAX_MESSAGE = 20 * 1024 * 1024  # bytes; what Bokeh itself takes
HEARTBEAT = 30.0  # seconds
SUBPROTOCOL = "bokeh"
TRACE = "trace"  # the query parameter that names the trace to show


class PanelServer:
    """Serves one page function through an aiohttp application.

    Args:
        page: called for each browser session; returns what Panel shows.
        session: the client session that reaches the loopback port.
    """

    def __init__(self, page: Callable[[], Any], session: Callable[[], ClientSession]) -> None:
        self._page = page
        self._session = session
        self._server: Any = None
        self._browsers: WeakSet[web.WebSocketResponse] = WeakSet()

    def start(self) -> None:
        """Listen; call it inside the running event loop."""
        # No websocket_origin is needed: the browser's origin is checked here and not passed on.
        self._server = get_server({"/": self._page}, port=0, address="127.0.0.1", title="Dice Lab")
        self._server.start()
        # Each of its requests has just been logged as one of ours.
        logging.getLogger("tornado.access").setLevel(logging.WARNING)

    async def disconnect(self) -> None:
        """Say goodbye to every browser, so that none holds up the end."""
        for browser in list(self._browsers):
            await browser.close(code=WSCloseCode.GOING_AWAY)

    def stop(self) -> None:
        self._server.stop()

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for the page or a static file with what Panel answers."""
        headers = {name: request.headers[name] for name in PASSED_TO_PANEL if name in request.headers}
        try:
            with suppress_http_instrumentation():
                async with self._session().get(
                    self._url("http", request), headers=headers, timeout=ClientTimeout(total=60)
                ) as answer:
                    response = web.StreamResponse(
                        status=answer.status,
                        headers={name: answer.headers[name] for name in PASSED_TO_BROWSER if name in answer.headers},
                    )
                    if answer.status >= 400:
                        kind = "not-found" if answer.status < 500 else "internal"
                        raise Problem(answer.status, "The page has no such part.", kind=kind)
                    trace_id, _ = traces.current_ids()
                    if trace_id:
                        response.headers[TRACE_ID_HEADER] = trace_id
                    await response.prepare(request)
                    async for chunk in answer.content.iter_chunked(64 * 1024):
                        await response.write(chunk)
                    await response.write_eof()
                    return response
        except (ClientError, asyncio.TimeoutError) as error:
            raise unavailable("The page cannot be made just now.", error) from error

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """Connect the browser's WebSocket with Panel's."""
        refuse_foreign_origin(request)
        offered = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        browser = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE, heartbeat=HEARTBEAT)
        if not browser.can_prepare(request):
            raise Problem(400, "This address takes WebSocket connections only.", kind="bad-request")
        trace_id, _ = traces.current_ids()
        if trace_id:
            browser.headers[TRACE_ID_HEADER] = trace_id
        try:
            with suppress_http_instrumentation():
                panel = await self._session().ws_connect(
                    self._url("ws", request),
                    protocols=[part for part in offered if part],
                    max_msg_size=MAX_MESSAGE,
                    headers={name: request.headers[name] for name in ("Cookie",) if name in request.headers},
                )
        except (ClientError, asyncio.TimeoutError) as error:
            raise unavailable("The page cannot be connected just now.", error) from error
        async with panel:
            await browser.prepare(request)
            self._browsers.add(browser)
            pumps = [asyncio.create_task(_pump(browser, panel)), asyncio.create_task(_pump(panel, browser))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                pass  # the browser went away, which is how most of these connections end
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await browser.close()
        return browser

    def _url(self, scheme: str, request: web.Request) -> URL:
        # The path, and the one thing that the page asks for: in the query Bokeh takes orders, a session to join
        # among them, and two browsers in one session would act as one user.
        trace_id = request.query.get(TRACE, "")
        query = f"?{TRACE}={trace_id}" if TRACE_ID.fullmatch(trace_id) else ""
        return URL(f"{scheme}://127.0.0.1:{self._server.port}{request.rel_url.raw_path}{query}", encoded=True)


async def _pump(
    source: web.WebSocketResponse | ClientWebSocketResponse, target: web.WebSocketResponse | ClientWebSocketResponse
) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
