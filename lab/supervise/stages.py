"""The stages: the services and settings of each, read from the env files that compose reads too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import LabError
from lab.paths import COMPOSE

STAGES = range(1, 7)
POSTGRES = "postgres"


@dataclass(frozen=True)
class Service:
    """A service: its name, the module that runs it and its port, counted from the base port."""

    name: str
    module: str
    port_offset: int
    url_variable: str
    many: bool = True  # whether it can run as several processes


# In the order in which they start; they stop in reverse order.
SERVICES = (
    Service("die-service", "dieservice", 1, "DIE_SERVICE_URL"),
    Service("dice-roller", "roller", 0, "DICE_ROLLER_URL"),
    # One process, because it holds the sessions of its page in memory.
    Service("frontend", "frontend", 2, "FRONTEND_URL", many=False),
)


@dataclass(frozen=True)
class Stage:
    number: int
    services: tuple[Service, ...]
    postgres: bool
    variables: dict[str, str]


def env_file(path: Path) -> dict[str, str]:
    """The variables in an env file."""
    return _variables(path.read_text().splitlines())


def _variables(lines: Iterable[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def load(number: int) -> Stage:
    """Read one stage.

    Raises:
        LabError: when there is no such stage or its file is missing.
    """
    if number not in STAGES:
        raise LabError(f"there is no stage {number}; stages are {STAGES[0]} to {STAGES[-1]}")
    path = COMPOSE / "stages" / f"{number}.env"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    variables = _variables(lines)
    parts = variables.pop("COMPOSE_PROFILES").split(",")
    services = tuple(service for service in SERVICES if service.name in parts)
    return Stage(number, services, POSTGRES in parts, variables)
