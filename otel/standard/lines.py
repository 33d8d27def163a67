"""Lines of JSON, and one handler for everything that a process logs, including libraries, warnings and exceptions."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any

import orjson


def dump(document: dict[str, Any]) -> bytes:
    """The document as JSON on one line; ``json`` takes the lone surrogates and the big integers that orjson refuses."""
    try:
        return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(document, default=str).encode()


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds, such as ``2026-01-02T03:04:05.678Z``."""
    whole = int(seconds)
    return f"{second(whole)}.{int((seconds - whole) * 1000 + 1e-4):03d}Z"


@lru_cache(4)
def second(whole: int) -> str:
    """The same without the milliseconds and the ``Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def capture(handler: logging.Handler, level: str) -> Callable[[], None]:
    """Send everything that this process logs to one handler, warnings and uncaught exceptions too.

    Returns:
        A function that restores the previous logging.
    """
    root = logging.getLogger()
    handlers, root_level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries may have added handlers of their own, which bypass this one, and set levels.
    for name in list(logging.root.manager.loggerDict):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.NOTSET)
    logging.captureWarnings(True)
    # No line has these, and they take a fifth of the time of a record (Logging HOWTO, Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        root.critical("Uncaught exception", exc_info=(kind, error, traceback))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    hooks = sys.excepthook, threading.excepthook
    sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread

    def restore() -> None:
        root.handlers[:] = handlers
        root.setLevel(root_level)
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = hooks

    return restore
