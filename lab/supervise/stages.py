"""The stages: the services and settings of each, read from the env files that compose reads too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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


# Names of variables that configure a service or what it depends on.
_CONFIGURING = re.compile(
    r"OTEL_|DATABASE_URL|ROLL_|TRACES_|TELEMETRY|DB_|DICE_|DIE_SERVICE_|LOG_|RANDOM_SEED|SESSION|ALLOWED_HOSTS|"
    r"WORKERS_DIR|EVENT_LOOP|(TEMPO|LOKI|PROMETHEUS|GRAFANA)_URL|ASYNC_ROLLS|SIGN_IN|MAX_|PORT$|HOST$"
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


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that would configure a service, for labs that must not depend on it."""
    return {name: value for name, value in environ.items() if not _CONFIGURING.match(name)}
