"""Parameters and responses that several services share: checks, and descriptions for the API documents."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from web.apidocs import parameter
from web.problems import bad_request

MAX_NAME = 64
# No control characters, no line or paragraph separators, and no bidirectional controls, which make a name
# look like another.
NAME_PATTERN = "^[^\\u0000-\\u001f\\u007f-\\u009f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]+$"
_NAME = re.compile(NAME_PATTERN)
# The response to a roll, from the dice-roller and from the frontend.
ROLL_PROBLEMS = "bad-request unknown-die method-not-allowed roll-failed unavailable timed-out"
ROLL_RESPONSE = {
    "type": "object",
    "required": ["roll"],
    "properties": {"roll": {"type": "integer", "description": "the face that came up"}},
}
BATCH_RESPONSE = {
    "type": "object",
    "required": ["total", "rolls", "count"],
    "properties": {
        "total": {"type": "integer", "description": "the sum of the rolls"},
        "rolls": {"type": "array", "items": {"type": "integer"}},
        "count": {"type": "integer"},
    },
}
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


def die_parameter(name: str = "die", *, required: bool = True) -> dict[str, Any]:
    """The description of the parameter that :func:`die_name` reads."""
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "pattern": NAME_PATTERN, "example": "fair"}
    return parameter(name, schema, "the die's name", required=required)


def times_parameter(highest: int) -> dict[str, Any]:
    """The description of the parameter that :func:`times` reads."""
    schema = {"type": "integer", "minimum": 1, "maximum": highest, "example": 10}
    return parameter("times", schema, "how many rolls, at once")


def single(request: web.Request, name: str) -> str | None:
    """The one value of a query parameter, or ``None`` where it is absent.

    Raises:
        Problem: 400 when it is given more than once.
    """
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise bad_request(f"Parameter {name!r} is given {len(values)} times; give it once.")
    return values[0] if values else None


def is_name(text: str) -> bool:
    """Whether a text can be a die's name: 1 to 64 characters, none of them a control character."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def die_name(request: web.Request, parameter: str = "die") -> str:
    """The name of a die: 1 to 64 characters, none of them control characters; there may be no such die.

    Raises:
        Problem: 400 when it is missing, repeated or no such text.
    """
    name = single(request, parameter)
    if name is None:
        raise bad_request(f"Parameter {parameter!r} is missing; try ?{parameter}=fair.")
    if not 1 <= len(name) <= MAX_NAME:
        raise bad_request(f"Parameter {parameter!r} must have 1 to {MAX_NAME} characters, not {len(name)}.")
    if not _NAME.fullmatch(name):
        raise bad_request(f"Parameter {parameter!r} must contain no control characters.")
    return name


def times(request: web.Request, highest: int) -> int:
    """How many rolls: a whole number from 1 to ``highest``.

    Raises:
        Problem: 400 when it is missing, repeated or no such number.
    """
    text = single(request, "times")
    if text is None:
        raise bad_request("Parameter 'times' is missing; try &times=10.")
    if not _WHOLE_NUMBER.fullmatch(text) or not 1 <= int(text) <= highest:
        raise bad_request(f"Parameter 'times' must be a whole number from 1 to {highest}.")
    return int(text)
