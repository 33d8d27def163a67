"""Where dice come from: built in, or asked of the die-service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Protocol

import orjson
from aiohttp import ClientError, ClientSession, ConnectionTimeoutError
from yarl import URL

from roller.dice import Die
from roller.telemetry import DieServiceTelemetry

BUILTIN = (
    Die("fair", (1, 2, 3, 4, 5, 6), 0.0),
    Die("risky", (2, 3, 4, 5, 6, 7), 0.1),
)


class UnknownDie(LookupError):
    """No die has this name; ``known`` are those that are there."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no die {name!r}.")
        self.known = list(known)


class CatalogueUnavailable(Exception):
    """Dice cannot be had now: the die-service is down, too busy or answers nonsense."""


class CatalogueTimeout(Exception):
    """The die-service took the question and did not answer in time."""


class Catalogue(Protocol):
    async def find(self, name: str) -> Die:
        """The die of this name.

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
    """Asks the die-service for each die, over the process's one client session.

    A burst may wait for a free connection. But once one has waited in vain the die-service is not keeping up, and
    who waits only makes it worse: then whoever finds all connections taken is refused at once, until half are free.
    """

    def __init__(
        self, session: Callable[[], ClientSession], url: URL, connections: int, telemetry: DieServiceTelemetry
    ) -> None:
        self._session = session
        url /= "dice"
        # Remembered: to put a URL together takes as long as to roll the die.
        self._question = lru_cache(1024)(lambda name: url.with_query(identifier=name))
        self._connections = connections
        self._telemetry = telemetry
        self._under_way = 0
        self._shedding = False

    async def find(self, name: str) -> Die:
        self._telemetry.asked(name)
        if self._shedding and self._under_way >= self._connections:
            self._telemetry.failed(name, "connection_error", 0.0)
            raise CatalogueUnavailable("The die-service does not keep up; no connection to it is free.")
        self._under_way += 1
        try:
            return await self._ask(name)
        finally:
            self._under_way -= 1
            if self._under_way <= self._connections // 2:
                self._shedding = False

    async def _ask(self, name: str) -> Die:
        started = perf_counter()
        try:
            async with self._session().get(self._question(name)) as response:
                status, body = response.status, await response.read()
        except ConnectionTimeoutError as error:
            # No connection came free or was made: nothing was asked yet, so coming back soon is sound advice.
            self._shedding = True
            self._telemetry.failed(name, "timeout", perf_counter() - started)
            raise CatalogueUnavailable("The die-service is too busy to take a connection.") from error
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
                raise CatalogueUnavailable("The die-service answered with something that is no die.") from error
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
    return [name for name in known if isinstance(name, str)]
