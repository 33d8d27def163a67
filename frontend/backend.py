"""The requests for rolls and for the list of dice, made by the page and by the JSON API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, ConnectionTimeoutError
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from yarl import URL

from frontend.settings import Settings
from frontend.telemetry import FrontendTelemetry
from frontend.usage import Sessions, User
from web.problems import Problem, timed_out, unavailable

# A die's faces, and the share of its rolls that fail.
Specification = tuple[Sequence[int], float]
BUILTIN_DICE: dict[str, Specification] = {"fair": (range(1, 7), 0.0), "risky": (range(2, 8), 0.1)}


class Backend:
    """Requests rolls from the dice-roller and the list of dice from the die-service."""

    def __init__(
        self,
        session: Callable[[], ClientSession],
        settings: Settings,
        telemetry: FrontendTelemetry,
        sessions: Sessions | None,
    ) -> None:
        self._session = session
        self._roller = settings.roller_url
        self._dice_url = settings.die_service_url / "dice" if settings.die_service_url else None
        self._list_timeout = settings.list_timeout
        self._telemetry = telemetry
        self._in_progress: set[asyncio.Task[Any]] = set()
        self._sessions = sessions
        self._specifications: dict[str, Specification] = {}
        self._dice: list[str] = [] if self._dice_url else list(BUILTIN_DICE)

    @property
    def dice(self) -> list[str]:
        """The names of the dice last fetched; empty until :meth:`fetch_dice` has succeeded once."""
        return list(self._dice)

    async def drain(self, timeout: float) -> None:
        """Wait until no roll is in progress, for ``timeout`` seconds at most."""
        if self._in_progress:
            await asyncio.wait(self._in_progress, timeout=timeout)

    async def roll_from_page(self, die: str, times: int | None, user: User | None) -> dict[str, Any]:
        """:meth:`roll` without an HTTP request that waits for it: the service's shutdown waits for it instead."""
        task = asyncio.ensure_future(self.roll(die, times, user))
        self._in_progress.add(task)
        task.add_done_callback(self._in_progress.discard)
        return await task

    async def roll(self, die: str, times: int | None, user: User | None) -> dict[str, Any]:
        """Roll once, or ``times`` times at once, and return the dice-roller's response.

        Raises:
            Problem: with the dice-roller's own status and text, or 503 or 504 when it does not respond.
        """
        with self._telemetry.outcomes.request():
            return await self._roll(die, times, user)

    async def _roll(self, die: str, times: int | None, user: User | None) -> dict[str, Any]:
        telemetry = self._telemetry
        telemetry.clicked(die, times)
        if self._sessions is not None and user is not None:
            self._sessions.rolled(user, die, times)
        url = self._roller / ("roll" if times is None else "roll-async")
        query = {"die": die} if times is None else {"die": die, "times": str(times)}
        started = perf_counter()
        try:
            status, document, retry_after = await self._get(url, query)
            if status == 200 and not isinstance(document.get("rolls" if times else "roll"), list if times else int):
                raise unavailable("The dice-roller's response contains no roll.")
        except Problem as problem:
            telemetry.got_no_response(die, problem.status, str(url), perf_counter() - started, problem.cause or problem)
            raise
        except asyncio.CancelledError:
            telemetry.abandoned(die, str(url), perf_counter() - started)
            raise
        seconds = perf_counter() - started
        if status == 200 or document.get("die") == die:
            telemetry.known_dice([die])
        telemetry.got_response(die, status, str(url), seconds)
        if status != 200:
            raise _relayed(status, document, retry_after)
        return document

    async def fetch_dice(self) -> list[str]:
        """Fetch the list of dice from the die-service; without a die-service, the built-in dice.

        Raises:
            Problem: when it does not return a list.
        """
        if self._dice_url is None:
            return self.dice
        try:
            status, document, _ = await self._get(self._dice_url, {}, ClientTimeout(total=self._list_timeout))
            if status != 200:
                raise _relayed(status, document, None)
            self._dice = [str(identifier) for identifier in document["identifiers"]]
        except Problem as problem:
            self._telemetry.dice_failed(str(self._dice_url), problem.detail)
            raise
        except (KeyError, TypeError) as error:
            self._telemetry.dice_failed(str(self._dice_url), "no list")
            raise unavailable("The die-service's response contains no list of dice.", error) from None
        self._telemetry.dice_fetched(self._dice, str(self._dice_url))
        return self.dice

    async def specification(self, die: str) -> Specification | None:
        """The specification of a die, or ``None`` when the die-service does not respond. Each is fetched once."""
        if self._dice_url is None:
            return BUILTIN_DICE.get(die)
        if die not in self._specifications and die in self._dice:
            with suppress(Problem), suppress_http_instrumentation():
                timeout = ClientTimeout(total=self._list_timeout)
                status, document, _ = await self._get(self._dice_url, {"identifier": die}, timeout)
                with suppress(KeyError, TypeError, ValueError):
                    found = document["specification"] if status == 200 else {}
                    faces = [int(face) for face in found["faces"]]
                    self._specifications[die] = (faces, float(found["error_rate"]))
        return self._specifications.get(die)

    async def _get(
        self, url: URL, query: dict[str, str], timeout: ClientTimeout | None = None
    ) -> tuple[int, dict[str, Any], str | None]:
        """Status, JSON object and ``Retry-After`` of a response; with the session's own time limits by default."""
        who = f"The service at {url.host}:{url.port}"
        try:
            session = self._session()
            async with session.get(url, params=query, timeout=timeout or session.timeout) as response:
                body = await response.read()
                document = orjson.loads(body)
                if not isinstance(document, dict):
                    raise ValueError("not a JSON object")
                return response.status, document, response.headers.get("Retry-After")
        except ConnectionTimeoutError as error:
            raise unavailable(f"{who} is too busy to accept a connection.", error) from error
        except asyncio.TimeoutError as error:
            raise timed_out(f"{who} did not answer in time.", error) from error
        except ClientError as error:
            raise unavailable(f"{who} cannot be reached.", error) from error
        except ValueError as error:
            raise unavailable(f"{who} sent an invalid response.", error) from error


def _relayed(status: int, document: dict[str, Any], retry_after: str | None) -> Problem:
    """A problem that another service reported, passed on unchanged, with our own trace id."""
    members = {
        name: value for name, value in document.items() if name not in {"type", "title", "status", "detail", "trace_id"}
    }
    return Problem(
        status if status >= 400 else 503,
        str(document.get("detail", "The service failed.")),
        kind=str(document.get("type", "")).rpartition("#")[2],
        members=members,
        headers={"Retry-After": retry_after} if retry_after else {},
    )
