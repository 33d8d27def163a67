"""The program whose telemetry ``test_oracle`` compares: ``python -m tests.unit.otel.oracle DIRECTORY PORT PORT ...``.

The dice-roller, the die-service with a real database and a third application, whose handlers end in every possible way,
run in one process, with a client that requests everything. It uses only the interface of ``otel``; ``TELEMETRY``
selects the implementation. Its spans are in ``DIRECTORY/spans.jsonl``, its lines in ``DIRECTORY/lines.jsonl``, the
services' metrics in ``DIRECTORY/<service>.metrics``. The ports: three for the applications in that order, one that
stays closed, one whose connections break. The database is ``DATABASE_URL``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

import dieservice.app
import dieservice.settings
import roller.app
import roller.settings
from otel import http, logs, metrics, traces
from web.application import add_common_routes, new_application
from web.connection import Runner
from web.hosts import AllowedHosts
from web.problems import Problem, timed_out, unavailable
from web.settings import Environment

CALLER, SPAN = "1" * 32, "2" * 16
SETTINGS = {
    "DICE_SOURCE": "die-service",
    "DICE_STORE": "postgres",
    "ASYNC_ROLLS": "true",
    "MAX_ROLLS": "5",
    "ROLL_DELAY": "0",
    "RANDOM_SEED": "7",
    "DB_POOL_SIZE": "1",
    "DB_QUERY_TIMEOUT": "0.4",
}
METRICS_FORMAT = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Wordless(Exception):
    """An exception whose text UTF-8 can encode only in part."""

    def __str__(self) -> str:
        return "half a \udce9 word, %s and \u2028"


def caused() -> None:
    try:
        raise KeyError("missing")
    except KeyError as error:
        raise LookupError("not found") from error


async def ends(request: web.Request) -> web.StreamResponse:
    """Ends as the path specifies."""
    how = request.match_info["how"]
    if how == "fails":
        raise RuntimeError("it failed")
    if how == "fails-in-spans":
        with traces.span("outer", {"depth": 1}), traces.span("inner", {"depth": 2, "ratio": 0.5, "yes": True}):
            caused()
    if how == "fails-during":
        try:
            caused()
        except LookupError:
            raise Wordless from None
    if how == "group":
        raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
    if how in ("400", "404", "422"):
        raise Problem(int(how), "The caller's mistake.")
    if how == "503":
        raise unavailable("A dependency is down.", ConnectionRefusedError(111, "refused"))
    if how == "504":
        raise timed_out("A dependency is slow.", TimeoutError())
    if how == "aiohttp-410":
        raise web.HTTPGone
    if how == "aiohttp-502":
        raise web.HTTPBadGateway
    if how == "redirect":
        raise web.HTTPFound("/ends/well")
    if how == "never":
        await asyncio.sleep(60)
    if how == "recorded":
        traces.rename_span("another name")
        try:
            caused()
        except LookupError as error:
            traces.record_failure(error)
    if how == "odd":
        values: dict[str, str | int | bool] = {
            "text": "caf\udce9 \u2028 ü", "long": "x" * 1000, "big": 2**40, "empty": "", "no": False,
        }  # fmt: skip
        for key, value in values.items():
            traces.set_attribute(key, value)
        logging.getLogger("library").warning("odd %s", "caf\udce9")
    if how == "links":
        here = trace.get_current_span().get_span_context()
        link = trace.Link(here, {"why": "test"})
        with trace.get_tracer("tests", "1").start_as_current_span("linked", links=[link]) as span:
            span.add_event("event", {"list": ["a", "b"], "number": 1})
            span.add_link(trace.SpanContext(5, 6, is_remote=True))
            span.set_attributes({"list": [1, 2], "floats": (0.5, float("inf"))})
            span.set_status(trace.StatusCode.OK)
    if how == "root":
        with traces.root_span("a root"):
            logging.getLogger("library").info("in another trace")
    if how == "unsampled":
        with traces.span("below one that is not kept"):
            pass
    return web.Response(text=traces.current_ids()[0] and "well", status=int(request.query.get("status", "200")))


@asynccontextmanager
async def served(app: web.Application, port: int) -> AsyncIterator[None]:
    runner = Runner(app, AllowedHosts(["lab"]), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield
    await runner.cleanup()


def other_app() -> web.Application:
    app = new_application()
    app.router.add_get("/ends/{how}", ends)
    app.router.add_post("/ends/{how}", ends)
    add_common_routes(app, metrics.new_registry(), title="frontend", description="A third application.")
    return app


async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes the connection: the first time after a response, later within one."""
    with suppress(asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/kept" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read(1)
    writer.close()


class Asking:
    """Sends one request after the other."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def __call__(
        self, port: int, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        with suppress(ClientError, asyncio.TimeoutError):
            url = f"http://127.0.0.1:{port}{path}"
            async with self._session.request(method, url, headers=headers, **options) as response:
                await response.read()


async def raw(port: int, request: bytes, wait: bool = True) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if wait:
        await reader.read()
    else:
        await asyncio.sleep(0.1)
    writer.close()


async def ask_everything(
    ask: Asking, roller_port: int, dice_port: int, other_port: int, closed: int, breaking: int
) -> None:
    for path in ("/", "/openapi.json", "/docs", "/healthz", "/readyz", "/nowhere", "/roll?die=fair", "/roll?die=fair"):
        await ask(roller_port, path)
    for die in ("fair", "risky", "extreme", "none-such", "%C3%A4%20b", "%FF", ""):
        for _ in range(4):
            await ask(roller_port, f"/roll?die={die}")
        await ask(roller_port, f"/roll-async?die={die}&times=3")
    for path in (
        "/roll",
        "/roll-async?die=fair&times=0",
        "/roll-async?die=fair&times=1",
        "/roll?die=a&die=b&sig=secret",
    ):
        await ask(roller_port, path)
    await ask(roller_port, "/roll?die=fair", "POST")
    await ask(roller_port, "/roll?die=fair", "PROPFIND")
    for path in ("/dice", "/dice?identifier=fair", "/dice?identifier=none", "/dice?other=1", "/docs"):
        await ask(dice_port, path)
    hows = (
        "well fails fails-in-spans fails-during group 400 404 422 503 504 aiohttp-410 aiohttp-502 redirect recorded odd"
    )
    for how in (*hows.split(), "links", "root", "fails"):
        await ask(other_port, f"/ends/{how}")
    for status in (201, 304, 418, 500):
        await ask(other_port, f"/ends/well?status={status}", "POST", data=b"x")
    await ask(other_port, "/ends/well", headers={"User-Agent": "own", "X-Own": "1"})
    # A client that times out, one that disconnects, closed ports, broken connections.
    await ask(other_port, "/ends/never", timeout=ClientTimeout(total=0.2))
    await raw(other_port, b"GET /ends/never HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", wait=False)
    await ask(closed, "/refused?x=1")
    for path in ("/kept", "/kept", "/broken"):
        await ask(breaking, path)
    # Context that a caller may propagate.
    for traceparent in (
        f"00-{CALLER}-{SPAN}-01", f"00-{CALLER}-{SPAN}-00", f"00-{CALLER}-{SPAN}-03",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{CALLER}-{'0' * 16}-01",
        "nonsense", f"00-{'A' * 32}-{SPAN}-01", f"cc-{'5' * 32}-{SPAN}-01-more", f" 00-{'6' * 32}-{SPAN}-01 ",
    ):  # fmt: skip
        for more in ("", "tracestate: a=1,b=2\r\nbaggage: k=v\r\n", "baggage: k=v\r\n"):
            for port, path in ((other_port, "/ends/unsampled"), (roller_port, "/roll?die=fair")):
                head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\ntraceparent: {traceparent}\r\n{more}"
                await raw(port, f"{head}Connection: close\r\n\r\n".encode())
    agent = b"User-Agent: caf\xe9 \xff\r\n"
    await raw(other_port, b"GET /ends/well HTTP/1.1\r\nHost: lab:1\r\nConnection: close\r\n" + agent + b"\r\n")
    await raw(other_port, b"GET /ends/w%e9ll?x=%ff HTTP/1.0\r\n" + agent + b"\r\n")
    await raw(other_port, b"nonsense\r\n\r\n")
    await raw(other_port, b"GET / HTTP/1.1\r\nHost: lab:port\r\nConnection: close\r\n\r\n")
    # Inside spans: baggage, and instrumentation that is switched off.
    with traces.span("caller"):
        await ask(roller_port, "/roll?die=fair")
        token = context.attach(baggage.set_baggage("who", "me"))
        await ask(roller_port, "/roll?die=fair")
        context.detach(token)
        with suppress_http_instrumentation():
            await ask(other_port, "/ends/well")
    # The database refuses, is too slow, and hangs up.
    with closing(psycopg2.connect(os.environ["DATABASE_URL"])) as database, database.cursor() as cursor:
        cursor.execute("ALTER TABLE dice RENAME TO gone")
        database.commit()
        await ask(dice_port, "/dice?identifier=fair")
        await ask(roller_port, "/roll?die=fair")
        cursor.execute("ALTER TABLE gone RENAME TO dice")
        database.commit()
        cursor.execute("LOCK TABLE dice")
        await ask(dice_port, "/dice?identifier=fair")
        database.rollback()


async def main(directory: Path, ports: list[int]) -> None:
    roller_port, dice_port, other_port, _, breaking = ports
    environ = SETTINGS | {
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "DIE_SERVICE_URL": f"http://127.0.0.1:{dice_port}",
    }
    env = Environment(environ)
    dice = dieservice.app.create_app(dieservice.settings.Settings.read(env))
    roll = roller.app.create_app(roller.settings.Settings.read(env))
    flaky = await asyncio.start_server(broken, "127.0.0.1", breaking)
    async with (
        served(dice, dice_port),
        served(roll, roller_port),
        served(other_app(), other_port),
        ClientSession() as session,
    ):
        ask = Asking(traces.instrument_session(session))
        with suppress_http_instrumentation():
            while True:
                async with session.get(f"http://127.0.0.1:{roller_port}/readyz") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.05)
        await ask_everything(ask, *ports)
        with suppress_http_instrumentation():
            for name, port in (("dice-roller", roller_port), ("die-service", dice_port), ("frontend", other_port)):
                async with session.get(f"http://127.0.0.1:{port}/metrics", headers=METRICS_FORMAT) as response:
                    (directory / f"{name}.metrics").write_text(await response.text())
    flaky.close()


if __name__ == "__main__":
    into = Path(sys.argv[1])
    stop_traces = traces.start(
        "oracle", traces.TraceFile(into / "spans.jsonl", 2**30, 1), [f"^({'|'.join(sorted(http.UNOBSERVED))})$"]
    )
    lines = os.open(into / "lines.jsonl", os.O_WRONLY | os.O_CREAT)
    stop_logs = logs.start("oracle", descriptor=lines)
    asyncio.run(main(into, [int(port) for port in sys.argv[2:7]]))
    stop_traces()
    stop_logs()
