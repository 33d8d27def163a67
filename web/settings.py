"""Configuration: environment variables, read once and checked, into frozen settings objects."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvloop
from yarl import URL

from otel import traces

T = TypeVar("T")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FLAGS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|\*")


EVENT_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


class SettingsError(ValueError):
    """A variable with an invalid value; the text is one line that names both."""


class Environment:
    """Reads typed values from environment variables; an unset or empty variable gives the default.

    Every method raises :class:`SettingsError` for a value that it does not allow.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str, default: str = "") -> str:
        return self._variables.get(name, "").strip() or default

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """One of ``choices``."""
        value = self.text(name, default)
        if value not in choices:
            raise SettingsError(f"{name}={value!r}: must be one of {', '.join(choices)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A switch: true/false, on/off, yes/no or 1/0."""
        value = self.text(name, str(default)).lower()
        if value not in _FLAGS:
            raise SettingsError(f"{name}={value!r}: must be true or false")
        return _FLAGS[value]

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        return self._number(name, default, low, high, int, "a whole number")

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from ``low`` to ``high``; times are in seconds."""
        return self._number(name, default, low, high, float, "a number")

    def _number(self, name: str, default: T, low: T, high: T, convert: Callable[[str], T], kind: str) -> T:
        value = self.text(name, str(default))
        try:
            number = convert(value)
        except ValueError:
            raise SettingsError(f"{name}={value!r}: must be {kind}") from None
        if not low <= number <= high:  # type: ignore[operator]  # also refuses NaN
            raise SettingsError(f"{name}={value!r}: must be from {low} to {high}")
        return number

    def names(self, name: str) -> tuple[str, ...]:
        """Host names, separated by commas; none by default."""
        value = self.text(name)
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        if not all(_HOST_NAME.fullmatch(part) for part in names):
            raise SettingsError(f"{name}={value!r}: must be host names without ports, separated by commas, or *")
        return names

    def secret(self, name: str, shortest: int) -> str:
        """A text of at least ``shortest`` characters, or empty; the error does not contain it."""
        value = self.text(name)
        if value and len(value) < shortest:
            raise SettingsError(f"{name}: must have {shortest} characters or more, not {len(value)}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number, or ``None`` where the variable is not set."""
        value = self.text(name)
        if not value:
            return None
        try:
            return int(value)
        except ValueError:
            raise SettingsError(f"{name}={value!r}: must be a whole number") from None

    def url(self, name: str, default: str = "") -> URL:
        """The address of an HTTP service, without a path."""
        value = self.text(name, default)
        try:
            url = URL(value)
            good = url.scheme in ("http", "https") and bool(url.host) and bool(url.port)
        except ValueError:
            good = False
        if not good:
            raise SettingsError(f"{name}={value!r}: must be a URL such as http://127.0.0.1:8000")
        return url.origin()

    def optional_url(self, name: str) -> URL | None:
        """:meth:`url`, or ``None`` where the variable is not set."""
        return self.url(name) if self.text(name) else None


@dataclass(frozen=True)
class ServerSettings:
    """The settings that every service has."""

    host: str
    port: int
    allowed_hosts: tuple[str, ...]  # names it accepts requests for, besides its own, localhost and IP addresses
    header_timeout: float  # seconds that the head of a request may take to arrive
    log_level: str
    shutdown_timeout: float  # seconds that requests in flight get to finish after SIGTERM
    event_loop: str  # uvloop or asyncio
    traffic_expected: bool  # whether the alert NoTraffic watches this lab
    workers_dir: Path | None  # the directory that the workers of a service share; None: there is one process
    defects_socket: Path | None  # where the service receives injected defects; None: nowhere
    trace_file: traces.TraceFile | None

    @classmethod
    def read(cls, env: Environment, default_port: int) -> ServerSettings:
        trace_file = env.text("TRACES_FILE")
        workers_dir = env.text("WORKERS_DIR")
        if workers_dir and not Path(workers_dir).is_dir():
            raise SettingsError(f"WORKERS_DIR={workers_dir!r}: there is no such directory")
        return cls(
            host=env.text("HOST", "127.0.0.1"),
            port=env.integer("PORT", default_port, 0, 65535),
            allowed_hosts=env.names("ALLOWED_HOSTS"),
            header_timeout=env.number("HEADER_TIMEOUT", 10.0, 0.1, 600.0),
            log_level=env.choice("LOG_LEVEL", "INFO", LEVELS),
            shutdown_timeout=env.number("SHUTDOWN_TIMEOUT", 8.0, 0.0, 600.0),
            event_loop=env.choice("EVENT_LOOP", "uvloop", tuple(EVENT_LOOPS)),
            traffic_expected=env.flag("TRAFFIC_EXPECTED", False),
            workers_dir=Path(workers_dir) if workers_dir else None,
            defects_socket=Path(defects_socket) if (defects_socket := env.text("DEFECTS_SOCKET")) else None,
            trace_file=traces.TraceFile(
                Path(trace_file),
                max_bytes=env.integer("TRACES_FILE_MAX_BYTES", 64 * 1024 * 1024, 4096, 2**40),
                backups=env.integer("TRACES_FILE_BACKUPS", 3, 1, 100),
            )
            if trace_file
            else None,
        )
