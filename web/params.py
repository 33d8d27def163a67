"""Checks of query parameters that more than one service takes."""

from __future__ import annotations

import re

from aiohttp import web

from web.problems import bad_request

MAX_NAME = 64
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


def single(request: web.Request, name: str) -> str | None:
    """The one value of a query parameter, or ``None`` where it is absent.

    Raises:
        Problem: 400 when it is given more than once.
    """
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise bad_request(f"Parameter {name!r} is given {len(values)} times; once is right.")
    return values[0] if values else None


def die_name(request: web.Request, parameter: str = "die") -> str:
    """The name of a die: 1 to 64 printable characters. Whether there is such a die is not asked here.

    Raises:
        Problem: 400 when it is missing, repeated or no such text.
    """
    name = single(request, parameter)
    if name is None:
        raise bad_request(f"Parameter {parameter!r} is missing; try ?{parameter}=fair.")
    if not 1 <= len(name) <= MAX_NAME:
        raise bad_request(f"Parameter {parameter!r} must have 1 to {MAX_NAME} characters, not {len(name)}.")
    if not name.isprintable():
        raise bad_request(f"Parameter {parameter!r} must hold printable characters only.")
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
