"""The API's description: ``/openapi.json`` and ``/docs``, both generated from the application's routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp_jinja2
import orjson
from aiohttp import web

from otel.http import TRACE_ID_HEADER

DOCUMENT = web.AppKey("openapi", dict)
_ATTRIBUTE = "__openapi__"
H = TypeVar("H", bound=Callable[..., Any])

PROBLEM_KINDS = {
    "bad-request": (400, "A parameter is missing, repeated or malformed; the detail says which, and what is valid."),
    "foreign-origin": (403, "A page of another site sent this request; only this site's own pages may."),
    "sign-in-required": (403, "Sign in first."),
    "not-found": (404, "No such path."),
    "unknown-die": (404, "No die has this name; member `known` lists the dice that exist."),
    "method-not-allowed": (405, "The path does not support this method; header `Allow` lists those that it supports."),
    "foreign-host": (421, "The `Host` header names a host that is not in ALLOWED_HOSTS."),
    "roll-failed": (500, "The die failed, as its error rate says it will. Roll again."),
    "internal": (500, "A defect of the service; the log line with the same trace id has the details."),
    "unavailable": (503, "A dependency is down or too busy; header `Retry-After` says when to try again."),
    "timed-out": (504, "A dependency accepted the request and did not answer in time."),
}

PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail", "trace_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
}


def parameter(name: str, schema: dict[str, Any], description: str, *, required: bool = True) -> dict[str, Any]:
    """One query parameter of :func:`describe`; ``schema`` is JSON Schema and holds an ``example``."""
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


def describe(
    summary: str, response: dict[str, Any], parameters: list[dict[str, Any]] | None = None, problems: str = ""
) -> Callable[[H], H]:
    """A decorator that describes a handler for the API's document.

    Args:
        summary: what it does, in a sentence.
        response: JSON Schema of the 200 response.
        parameters: its query parameters.
        problems: the kinds of :data:`PROBLEM_KINDS` it may respond with, separated by spaces.
    """
    responses: dict[str, Any] = {
        "200": {
            "description": "Success.",
            "headers": {TRACE_ID_HEADER: {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": response}},
        }
    }
    for kind in problems.split():
        status, description = PROBLEM_KINDS[kind]
        known = responses.get(str(status))
        responses[str(status)] = {
            "description": f"{known['description']} Or: {description}" if known else description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    operation = {"summary": summary, "parameters": parameters or [], "responses": responses}

    def mark(handler: H) -> H:
        setattr(handler, _ATTRIBUTE, operation)
        return handler

    return mark


def is_api(request: web.Request) -> bool:
    """Whether the request is for a described route; such a route always responds with JSON."""
    return hasattr(request.match_info.handler, _ATTRIBUTE)


def expected_statuses(route: web.AbstractRoute) -> set[int]:
    """The statuses with which a route may respond to its own method: 200, 500 and those of its description but 405."""
    operation = getattr(route.handler, _ATTRIBUTE, {"responses": {}})
    described = {int(status) for status in operation["responses"]}
    return (described | {200, PROBLEM_KINDS["internal"][0]}) - {PROBLEM_KINDS["method-not-allowed"][0]}


def document(app: web.Application, title: str, description: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application's described routes."""
    paths: dict[str, Any] = {}
    for resource in app.router.resources():
        for route in resource:
            operation = getattr(route.handler, _ATTRIBUTE, None)
            if operation is not None:
                paths.setdefault(resource.canonical, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM_SCHEMA}},
    }


async def openapi(request: web.Request) -> web.Response:
    return web.Response(body=orjson.dumps(request.app[DOCUMENT]), content_type="application/json")


async def docs(request: web.Request) -> web.Response:
    return aiohttp_jinja2.render_template(
        "docs.html", request, {"api": request.app[DOCUMENT], "problems": PROBLEM_KINDS}
    )


async def front_page(request: web.Request) -> web.Response:
    """The page at ``/`` of a service without a page of its own: its name, and links to its endpoints."""
    api = request.app[DOCUMENT]
    return aiohttp_jinja2.render_template("front.html", request, {"api": api})
