"""The dice-roller's routes: check the query, find the die, roll it, respond."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from roller.catalogue import Catalogue, CatalogueTimeout, CatalogueUnavailable, UnknownDie
from roller.dice import Die, Roller, RollFailed
from roller.telemetry import BatchTelemetry, DieServiceTelemetry, RollTelemetry
from web import params
from web.apidocs import describe
from web.outcomes import ROLL_FAILED
from web.problems import Problem, timed_out, unavailable

ROLLER = web.AppKey("roller", Roller)
CATALOGUE = web.AppKey("catalogue", Catalogue)
ROLLS = web.AppKey("rolls", RollTelemetry)
BATCHES = web.AppKey("batches", BatchTelemetry)
DIE_SERVICE = web.AppKey("die_service", DieServiceTelemetry)
NO_SPAN: AbstractContextManager[None] = nullcontext()


def _json(document: object) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def _find(app: web.Application, name: str, within: AbstractContextManager[None] = NO_SPAN) -> Die:
    """Find a die; ``within`` is around the request for it, not around what is recorded when there is no such die."""
    try:
        with within:
            die = await app[CATALOGUE].find(name)
    except UnknownDie as error:
        app[ROLLS].unknown_die(name)
        raise Problem(404, str(error), kind="unknown-die", members={"known": error.known}) from None
    except CatalogueUnavailable as error:
        raise unavailable(str(error), cause=error.__cause__ or error) from None
    except CatalogueTimeout as error:
        raise timed_out(str(error), cause=error.__cause__ or error) from None
    app[ROLLS].expect(die.name)
    return die


@describe("Roll a die once.", params.ROLL_RESPONSE, [params.die_parameter()], params.ROLL_PROBLEMS)
async def roll(request: web.Request) -> web.Response:
    app = request.app
    name = params.die_name(request)
    telemetry = app[ROLLS]
    telemetry.requested(name)
    with telemetry.outcomes.request():
        die = await _find(app, name)
        try:
            face = await app[ROLLER].roll(die)
        except RollFailed as error:
            telemetry.failed(name, error)
            raise Problem(500, str(error), kind=ROLL_FAILED, members={"die": name}, cause=error) from None
        telemetry.completed(name, face)
        return _json({"roll": face})


def roll_async(highest: int) -> Handler:
    """The handler of batches of up to ``highest`` rolls."""

    @describe(
        "Roll a die many times at once.",
        params.BATCH_RESPONSE,
        [params.die_parameter(), params.times_parameter(highest)],
        params.ROLL_PROBLEMS,
    )
    async def roll_async(request: web.Request) -> web.Response:
        app = request.app
        name = params.die_name(request)
        times = params.times(request, highest)
        app[ROLLS].requested(name)
        with app[ROLLS].outcomes.request():
            die = await _find(app, name, app[DIE_SERVICE].query() if DIE_SERVICE in app else NO_SPAN)
            return _json(await _batch(app, die, times))

    return roll_async


async def _batch(app: web.Application, die: Die, times: int) -> dict[str, object]:
    try:
        with app[BATCHES].batch(die.name, times) as batch:
            rolls = await app[ROLLER].roll_batch(die, times, batch.roll)
            failed = [index for index, face in enumerate(rolls, start=1) if face is None]
            if failed:
                raise RollFailed(f"{len(failed)} of {times} rolls of the {die.name} die failed.")
            total = sum(face for face in rolls if face is not None)
            batch.completed(total)
    except RollFailed as error:
        members = {"die": die.name, "count": times, "rolls": rolls, "failed": failed}
        raise Problem(500, str(error), kind=ROLL_FAILED, members=members, cause=error) from None
    return {"total": total, "rolls": rolls, "count": times}
