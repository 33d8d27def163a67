"""The die-service's routes: check the query, look the die up in the catalogue, respond."""

from __future__ import annotations

import orjson
from aiohttp import web

from dieservice.catalogue import Catalogue, CatalogueTimeout, CatalogueUnavailable, UnknownDie
from dieservice.telemetry import DiceTelemetry
from web import params
from web.apidocs import describe
from web.problems import Problem, timed_out, unavailable

CATALOGUE = web.AppKey("catalogue", Catalogue)
DICE = web.AppKey("dice", DiceTelemetry)

LIST_RESPONSE = {
    "type": "object",
    "required": ["identifiers"],
    "properties": {"identifiers": {"type": "array", "items": {"type": "string"}, "description": "sorted"}},
}
DIE_RESPONSE = {
    "type": "object",
    "required": ["identifier", "specification"],
    "properties": {
        "identifier": {"type": "string"},
        "specification": {
            "type": "object",
            "required": ["faces", "error_rate"],
            "properties": {
                "faces": {"type": "array", "items": {"type": "integer"}},
                "error_rate": {"type": "number", "minimum": 0, "maximum": 1},
            },
        },
    },
}


@describe(
    "List the dice, or show one.",
    {"oneOf": [LIST_RESPONSE, DIE_RESPONSE]},
    [params.die_parameter("identifier", required=False)],
    "bad-request unknown-die method-not-allowed unavailable timed-out",
)
async def dice(request: web.Request) -> web.Response:
    try:
        document = await (_one(request) if "identifier" in request.query else _all(request))
    except CatalogueUnavailable as error:
        raise unavailable(str(error), cause=error.__cause__ or error) from None
    except CatalogueTimeout as error:
        raise timed_out(str(error), cause=error.__cause__ or error) from None
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def _all(request: web.Request) -> dict[str, object]:
    request.app[DICE].list_requested()
    return {"identifiers": await request.app[CATALOGUE].identifiers()}


async def _one(request: web.Request) -> dict[str, object]:
    identifier = params.die_name(request, "identifier")
    telemetry = request.app[DICE]
    telemetry.die_requested(identifier)
    try:
        die = await request.app[CATALOGUE].get(identifier)
    except UnknownDie as error:
        telemetry.die_not_found(identifier)
        raise Problem(404, str(error), kind="unknown-die", members={"known": error.known}) from None
    telemetry.die_found(identifier)
    return die.document()
