"""The sources of dice: built in, or the die-service."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, Protocol

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, ConnectionTimeoutError
from yarl import URL

from roller.dice import Die
from roller.telemetry import DieServiceTelemetry
from web.params import is_name

BUILTIN = (
    Die("fair", (1, 2, 3, 4, 5, 6), 0.0),
    Die("risky", (2, 3, 4, 5, 6, 7), 0.1),
)


class UnknownDie(LookupError):
    """No die has this name; ``known`` lists the names of the dice that exist."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no die {name!r}.")
        self.known = list(known)


class CatalogueUnavailable(Exception):
    """The die-service is down, too busy, or its response is not a die."""


class CatalogueTimeout(Exception):
    """The die-service accepted the request and did not respond in time."""


class Catalogue(Protocol):
    async def find(self, name: str) -> Die:
        """The die with this name.

        Raises:
            UnknownDie, CatalogueUnavailable, CatalogueTimeout
        """


class BuiltinCatalogue:
    def __init__(self, dice: Sequence[Die] = BUILTIN) -> None:
        self._dice = {die.name: die for die in dice}

    async def find(self, name: str) -> Die:
        try:
            return self._dice[name]
        except KeyError:
            raise UnknownDie(name, sorted(self._dice)) from None


class RemoteCatalogue:
    """Requests each die from the die-service, over the process's one client session.

    Requests wait for a free connection, so that a burst succeeds. A wait that times out starts load shedding: requests
    that find all connections in use are refused at once, until half of the connections are free.
    """

    def __init__(
        self, session: Callable[[], ClientSession], url: URL, connections: int, telemetry: DieServiceTelemetry
    ) -> None:
        self._session = session
        url /= "dice"
        # Cached: building a URL takes as long as rolling the die.
        self._url_of = lru_cache(1024)(lambda name: url.with_query(identifier=name))
        self._connections = connections
        self._telemetry = telemetry
        self._in_flight = 0
        self._shedding = False
        self._retry_storm: Mapping[str, Any] | None = None

    def retry_storm(self, storm: Any) -> None:
        """An injected defect, see web/defects.py: attempts time out too soon and are repeated at once.

        With ``{"share": 0.7, "seconds": 0.01, "attempts": 5}`` this share of the attempts times out after ``seconds``;
        after ``attempts`` of them in a row the roll fails. ``None`` ends it.
        """
        self._retry_storm = storm

    async def find(self, name: str) -> Die:
        self._telemetry.requested(name)
        if self._shedding and self._in_flight >= self._connections:
            self._telemetry.failed(name, "connection_error", 0.0)
            raise CatalogueUnavailable("The die-service is overloaded; no connection to it is free.")
        self._in_flight += 1
        try:
            if self._retry_storm is not None:
                await self._waste_attempts(name, **self._retry_storm)
            return await self._request(name)
        finally:
            self._in_flight -= 1
            if self._in_flight <= self._connections // 2:
                self._shedding = False

    async def _waste_attempts(self, name: str, share: float, seconds: float, attempts: int) -> None:
        for _ in range(attempts):
            if random.random() >= share:
                return
            started = perf_counter()
            try:
                async with self._session().get(self._url_of(name), timeout=ClientTimeout(total=seconds)):
                    return  # responded in time after all; the roll sends one more request
            except asyncio.TimeoutError:
                self._telemetry.failed(name, "timeout", perf_counter() - started)
            except ClientError:
                self._telemetry.failed(name, "connection_error", perf_counter() - started)
        raise CatalogueTimeout("The die-service did not answer in time.")

    async def _request(self, name: str) -> Die:
        started = perf_counter()
        try:
            async with self._session().get(self._url_of(name)) as response:
                status, body = response.status, await response.read()
        except ConnectionTimeoutError as error:
            # The request was not sent, so it is safe to retry: 503 with Retry-After, not 504.
            self._shedding = True
            self._telemetry.failed(name, "timeout", perf_counter() - started)
            raise CatalogueUnavailable("The die-service is too busy to accept a connection.") from error
        except asyncio.TimeoutError as error:
            self._telemetry.failed(name, "timeout", perf_counter() - started)
            raise CatalogueTimeout("The die-service did not answer in time.") from error
        except ClientError as error:
            self._telemetry.failed(name, "connection_error", perf_counter() - started)
            raise CatalogueUnavailable("The die-service cannot be reached.") from error
        seconds = perf_counter() - started
        if status == 200:
            try:
                die = _die(name, body)
            except (ValueError, KeyError, TypeError) as error:
                self._telemetry.failed(name, status, seconds)
                raise CatalogueUnavailable("The response of the die-service is not a die.") from error
            self._telemetry.found(name, seconds)
            return die
        if status == 404:
            self._telemetry.not_found(name, seconds)
            raise UnknownDie(name, _known(body))
        self._telemetry.failed(name, status, seconds)
        if status == 504:
            raise CatalogueTimeout("The die-service waited too long for its database.")
        raise CatalogueUnavailable(f"The die-service answered with status {status}.")


def _die(name: str, body: bytes) -> Die:
    specification = orjson.loads(body)["specification"]
    return Die(name, tuple(int(face) for face in specification["faces"]), float(specification["error_rate"]))


def _known(body: bytes) -> list[str]:
    try:
        known = orjson.loads(body)["known"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []
    return [name for name in known if isinstance(name, str) and is_name(name)]
