"""Values of command-line options: their types, their bounds, and the options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

PROFILES = ("steady", "ramp", "spike", "day")
EXPERIMENTS = (
    "database-down",
    "database-slow",
    "die-service-down",
    "die-service-slow",
    "pool-exhausted",
    "roller-killed",
    *(
        f"{engine}-{how}"
        for engine in ("collector", "tempo", "loki", "alloy", "prometheus")
        for how in ("down", "killed", "frozen", "disk-full")
    ),
)
RUN_DIR = Path(".dicelab")
MAX_USERS = 5000

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.ParamType[float]):
    """A number with bounds, both included; refuses NaN."""

    def __init__(self, low: float, high: float, unit: str = "", kind: type[float] = float) -> None:
        self.name = "number"
        self._low, self._high, self._unit, self._kind = low, high, unit, kind

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        try:
            number = self._kind(value)
        except ValueError:
            self.fail(f"{value!r} is not a {'whole ' if self._kind is int else ''}number", param, context)
        if not self._low <= number <= self._high:
            self.fail(f"{value} is not from {self._low:g} to {self._high:g}{self._unit}", param, context)
        return number


def count(low: int, high: int) -> Number:
    """A whole number with bounds."""
    return Number(low, high, kind=int)


class Dice(click.ParamType[dict[str, float]]):
    """Dice and their proportions: ``fair=3,risky``."""

    name = "dice"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> dict[str, float]:
        dice: dict[str, float] = {}
        for part in str(value).split(","):
            name, equals, share = part.partition("=")
            proportion = _float(share) if equals else 1.0
            if not name or not 0 < proportion < math.inf:
                self.fail(f"{part!r} is not a die with a proportion above 0, such as fair=3", param, context)
            dice[name] = proportion
        if not sum(dice.values()) < math.inf:
            self.fail(f"the proportions in {value!r} add up to more than a number can hold", param, context)
        return dice


class Ratio(click.ParamType[tuple[float, float]]):
    """Two numbers: ``1:4``."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):  # the default
            return value
        first, _, second = str(value).partition(":")
        lists, gets = _float(first), _float(second)
        if not (lists >= 0 and gets >= 0 and 0 < lists + gets < math.inf):
            self.fail(f"{value!r} is not a ratio such as 1:4", param, context)
        return lists, gets


class Url(click.ParamType[str]):
    """The URL of a lab, without a slash at its end."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        if not _has_host(str(value)):
            self.fail(f"{value!r} is not a URL such as http://127.0.0.1:8002", param, context)
        return str(value).rstrip("/")


class Address(click.ParamType[tuple[str, str]]):
    """The URL of a lab, or of one part of it after the part's name: ``tempo=http://127.0.0.1:3200``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, url = str(value).partition("=")
        if not equals or "/" in name:  # an equals sign of the URL itself
            name, url = "", str(value)
        return name, Url().convert(url, param, context)


def _has_host(url: str) -> bool:
    """Whether a text is an HTTP URL with a host, and with a valid port if it has one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535, or brackets without an IPv6 address
        return False


def _float(text: str) -> float:
    """The number in a text; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


PROBABILITY = Number(0.0, 1.0)
DURATION = Number(0.1, 7 * 24 * 3600, " seconds")
RATE = Number(0.1, 100_000, " a second")
DELAY = Number(0, 60, " seconds")

run_dir = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=RUN_DIR,
    metavar="DIRECTORY",
    help="The directory of the lab's files.",
)
url = click.option(
    "--url", type=Url(), metavar="URL", help="The lab's address [default: that of the lab in the run dir]"
)

addresses = click.option(
    "--url",
    "addresses",
    type=Address(),
    multiple=True,
    metavar="[NAME=]URL",
    help="The address of a lab elsewhere, or of one part of it.",
)


def experiment(command: Command) -> Command:
    """The options that traffic and experiments share."""
    for option in (
        run_dir,
        click.option("--json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--timeout",
            type=Number(0.1, 600, " seconds"),
            default=30.0,
            metavar="SECONDS",
            help="The time limit of one request.",
        ),
        click.option("--seed", type=int, metavar="N", help="Makes the requests and their order repeatable."),
    ):
        command = option(command)
    return command
