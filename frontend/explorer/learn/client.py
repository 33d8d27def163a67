"""The client of the exercises, which the lab offers on a Unix socket in a private directory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, UnixConnector
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

TIMEOUT = 250.0  # seconds: an exercise may take a minute to prepare


@dataclass(frozen=True)
class Reply:
    """The outcome of a request.

    Attributes:
        status: 0 done or right, 1 wrong, 2 not possible.
        document: the result of the action.
        error: why the action was not possible; else empty.
        busy: the number of the exercise that is being prepared or checked.
    """

    status: int
    document: Any
    error: str
    busy: str


class Exercises:
    """Asks the lab for exercises.

    Args:
        socket: the path of its socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: ClientSession | None = None

    async def do(self, *words: str, answer: str = "") -> Reply:
        """Run an action of ``dicelab learn``. Does not raise: a failure is a reply with status 2."""
        if self._session is None:
            self._session = ClientSession(
                connector=UnixConnector(str(self._socket)),
                cookie_jar=DummyCookieJar(),
                timeout=ClientTimeout(total=TIMEOUT),
            )
        try:
            # It belongs to no request of a user, so it has no span.
            with suppress_http_instrumentation():
                async with self._session.post("http://lab/", json={"words": words, "answer": answer}) as response:
                    found = await response.json()
            return Reply(
                int(found.get("status", 2)), found.get("document"), str(found["error"]), str(found.get("busy", ""))
            )
        except (ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, AttributeError) as error:
            return Reply(2, None, f"the lab does not answer: {str(error) or type(error).__name__}", "")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
