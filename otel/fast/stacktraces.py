"""Stack traces as text; a stack that recurs is formatted once.

An overloaded service refuses thousands of requests a second, all at the same few places.
``traceback`` extracts, looks up and parses the source of every frame each time: a millisecond a refusal, which took
half of the service's capacity. Here a stack is formatted once.
"""

from __future__ import annotations

import traceback
from types import CodeType, TracebackType

MAX_STACKS = 512  # stacks in the cache

# For these, ``traceback`` prints more than the name and the message.
_SPECIAL = (BaseExceptionGroup, SyntaxError, NameError, AttributeError, ImportError)
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"

# By the ids of the code objects and the instructions in them. The code objects are kept, so that no id is reused.
_stacks: dict[tuple[int, ...], tuple[str, list[CodeType]]] = {}


def stacktrace(error: BaseException) -> str:
    """The text of ``traceback.format_exception`` for an exception, including its causes and contexts."""
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, _SPECIAL) or hasattr(link, "__notes__") or id(link) in seen:
            return "".join(traceback.format_exception(error))
        seen.add(id(link))
        parts.append(_last_line(link))
        if link.__traceback__ is not None:
            parts.append(_stack(link.__traceback__))
        if link.__cause__ is not None:
            parts.append(_CAUSE)
            link = link.__cause__
        elif link.__context__ is not None and not link.__suppress_context__:
            parts.append(_CONTEXT)
            link = link.__context__
        else:
            link = None
    return "".join(reversed(parts))


def _stack(outermost: TracebackType) -> str:
    key: list[int] = []
    codes: list[CodeType] = []
    entry: TracebackType | None = outermost
    while entry is not None:
        code = entry.tb_frame.f_code
        codes.append(code)
        key += id(code), entry.tb_lasti
        entry = entry.tb_next
    known = _stacks.get(tuple(key))
    if known is None:
        if len(_stacks) >= MAX_STACKS:
            _stacks.clear()
        text = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(outermost))
        known = _stacks[tuple(key)] = text, codes
    return known[0]


def _last_line(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        said = str(error)
    except Exception:
        said = "<exception str() failed>"
    return f"{name}: {said}\n" if said else f"{name}\n"
