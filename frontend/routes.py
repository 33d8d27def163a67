"""The frontend's routes: the page, its JSON API, and signing in and out."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp_jinja2
import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from frontend.backend import Backend
from frontend.explorer.model import TRACE_ID
from frontend.panel_server import TRACE, PanelServer
from frontend.telemetry import ROOT_SPAN
from frontend.usage import MAX_AGE, NameRefused, Sessions, User, cookie_name
from otel import traces
from web import params
from web.apidocs import describe
from web.origin import is_foreign, refuse_foreign_origin
from web.problems import Problem, bad_request

FORM_TIMEOUT = 10.0  # seconds that the sign-in form may take to arrive

BACKEND = web.AppKey("backend", Backend)
PANEL = web.AppKey("panel", PanelServer)
SESSIONS = web.AppKey("sessions", Sessions)


def _user(request: web.Request) -> User | None:
    sessions = request.app.get(SESSIONS)
    return sessions.read(request.cookies.get(cookie_name(request.url))) if sessions else None


def _redirect(location: str) -> web.Response:
    return web.Response(status=303, headers={"Location": location})


def _view_query(request: web.Request) -> str:
    """The query of the page's address, which selects what it shows; empty if there is none.

    Raises:
        Problem: 400 for an invalid trace id.
    """
    trace_id = request.query.get(TRACE)
    if trace_id and not TRACE_ID.fullmatch(trace_id):
        raise bad_request("A trace id has 32 hexadecimal digits, in lower case.")
    query = request.rel_url.raw_query_string
    return f"?{query}" if query else ""


async def page(request: web.Request) -> web.StreamResponse:
    view = _view_query(request)
    user = _user(request)
    if SESSIONS in request.app and user is None:
        return _redirect(f"/sign-in{view}")
    with suppress(Problem):  # it is logged; the page shows the dice last fetched, or reports that there are none
        await request.app[BACKEND].fetch_dice()
    return await request.app[PANEL].page(request, user)


async def static(request: web.Request) -> web.StreamResponse:
    return await request.app[PANEL].relay(request)


async def websocket(request: web.Request) -> web.StreamResponse:
    user = _user(request)
    if SESSIONS in request.app and user is None:
        raise Problem(403, "Sign in first.", kind="sign-in-required")
    return await request.app[PANEL].websocket(request, user)


@describe(
    "Roll a die once, as the page's button does.",
    params.ROLL_RESPONSE,
    [params.die_parameter()],
    params.ROLL_PROBLEMS,
)
async def roll(request: web.Request) -> web.Response:
    die = params.die_name(request)
    return await _roll(request, die, None)


def roll_async(highest: int) -> Handler:
    """The handler of batches of up to ``highest`` rolls."""

    @describe(
        "Roll a die many times at once, as the page's button does.",
        params.BATCH_RESPONSE,
        [params.die_parameter(), params.times_parameter(highest)],
        params.ROLL_PROBLEMS,
    )
    async def roll_async(request: web.Request) -> web.Response:
        die = params.die_name(request)
        return await _roll(request, die, params.times(request, highest))

    return roll_async


async def _roll(request: web.Request, die: str, times: int | None) -> web.Response:
    traces.rename_span(ROOT_SPAN)
    # A browser also sends the cookie when the user follows a link on another site: that roll is not the user's.
    user = None if is_foreign(request) else _user(request)
    document = await request.app[BACKEND].roll(die, times, user)
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def sign_in_page(request: web.Request) -> web.Response:
    return aiohttp_jinja2.render_template(
        "sign_in.html", request, {"name": "", "refused": "", "view": _view_query(request)}
    )


async def sign_in(request: web.Request) -> web.Response:
    refuse_foreign_origin(request)
    view = _view_query(request)
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            name = str((await request.post()).get("name", ""))
    except TimeoutError as error:
        raise Problem(408, "The form did not arrive in time.") from error
    except (ValueError, LookupError, AssertionError) as error:  # undecodable, an unknown charset, a broken boundary
        raise bad_request("The form cannot be read.") from error
    try:
        _, cookie = request.app[SESSIONS].sign_in(name)
    except NameRefused as refused:
        return aiohttp_jinja2.render_template(
            "sign_in.html", request, {"name": name[:64], "refused": str(refused), "view": view}, status=400
        )
    response = _redirect(f"/{view}")
    response.set_cookie(cookie_name(request.url), cookie, max_age=MAX_AGE, httponly=True, samesite="Lax", path="/")
    return response


async def sign_out(request: web.Request) -> web.Response:
    refuse_foreign_origin(request)
    user = _user(request)
    if user is not None:
        await request.app[SESSIONS].sign_out(user)
    response = _redirect("/sign-in")
    response.del_cookie(cookie_name(request.url), path="/")
    return response


async def error_page(request: web.Request, problem: Problem) -> web.Response:
    values = {
        "problem": problem,
        "trace_id": traces.current_ids()[0],
        "retry_after": problem.headers.get("Retry-After"),
    }
    response = aiohttp_jinja2.render_template("error.html", request, values, status=problem.status)
    response.headers.update(problem.headers)
    return response
