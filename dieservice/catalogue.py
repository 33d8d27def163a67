"""The catalogue of dice: what a die is, and a catalogue from a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from web.settings import SettingsError


@dataclass(frozen=True)
class Specification:
    """A die: its identifier, its faces, and the probability, from 0 to 1, that a roll fails."""

    identifier: str
    faces: tuple[int, ...]
    error_rate: float

    def document(self) -> dict[str, Any]:
        return {
            "identifier": self.identifier,
            "specification": {"faces": list(self.faces), "error_rate": self.error_rate},
        }


class UnknownDie(LookupError):
    """No die has this identifier; ``known`` lists the identifiers of the dice that exist."""

    def __init__(self, identifier: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no die {identifier!r}.")
        self.known = list(known)


class CatalogueUnavailable(Exception):
    """The database is unavailable or too busy."""


class CatalogueTimeout(Exception):
    """The database accepted the query and did not respond in time."""


class Catalogue(Protocol):
    """A source of dice. One that depends on a database raises :class:`CatalogueUnavailable` or
    :class:`CatalogueTimeout`."""

    async def identifiers(self) -> list[str]:
        """All identifiers, sorted."""

    async def get(self, identifier: str) -> Specification:
        """The die with this identifier.

        Raises:
            UnknownDie: when there is no such die.
        """


class FileCatalogue:
    def __init__(self, dice: Sequence[Specification]) -> None:
        self._dice = {die.identifier: die for die in sorted(dice, key=lambda die: die.identifier)}

    async def identifiers(self) -> list[str]:
        return list(self._dice)

    async def get(self, identifier: str) -> Specification:
        try:
            return self._dice[identifier]
        except KeyError:
            raise UnknownDie(identifier, list(self._dice)) from None


def read_file(path: Path) -> list[Specification]:
    """Read dice from a JSON file: a list of objects with ``identifier``, ``faces`` and ``error_rate``.

    Raises:
        SettingsError: when the file is missing or its content is not such a list.
    """
    try:
        dice = [_specification(entry) for entry in orjson.loads(path.read_bytes())]
    except OSError as error:
        raise SettingsError(f"DICE_FILE={str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"DICE_FILE={str(path)!r}: not a list of dice: {error}") from None
    if len({die.identifier for die in dice}) != len(dice):
        raise SettingsError(f"DICE_FILE={str(path)!r}: two dice have the same identifier")
    return dice


def _specification(entry: dict[str, Any]) -> Specification:
    die = Specification(
        str(entry["identifier"]), tuple(int(face) for face in entry["faces"]), float(entry["error_rate"])
    )
    if not (1 <= len(die.identifier) <= 64 and die.identifier.isprintable()):
        raise ValueError(f"identifier {die.identifier!r}: must be 1 to 64 printable characters")
    if not die.faces:
        raise ValueError(f"die {die.identifier!r} has no faces")
    if not 0.0 <= die.error_rate <= 1.0:
        raise ValueError(f"die {die.identifier!r}: error_rate must be from 0 to 1")
    return die
