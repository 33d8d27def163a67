"""The frontend's settings, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from web.settings import Environment, ServerSettings

MIN_SECRET = 32  # characters


@dataclass(frozen=True)
class Settings:
    server: ServerSettings
    roller_url: URL
    die_service_url: URL | None  # None: the list of dice is that of the built-in ones
    async_rolls: bool
    sign_in: bool
    session_secret: str = field(repr=False)  # signs the session cookie; empty: a new one at each start
    sessions_file: Path | None  # remembers who has signed out; None: a restart signs all users out
    max_pages: int  # browser sessions at a time
    max_rolls: int
    connect_timeout: float  # seconds, as is the next
    timeout: float
    connections: int
    list_timeout: float  # for the list of dice, which a page load waits for
    # The explorer's sources: the running engines, and files for signals without one.
    telemetry_dir: Path | None
    learn_socket: Path | None  # where the exercises and the game are; None: there are none
    tempo_url: URL | None
    loki_url: URL | None
    prometheus_url: URL | None
    alertmanager_url: URL | None
    grafana_url: URL | None

    @classmethod
    def read(cls, env: Environment) -> Settings:
        remote = env.choice("DICE_SOURCE", "builtin", ("builtin", "die-service")) == "die-service"
        return cls(
            server=ServerSettings.read(env, default_port=8002),
            roller_url=env.url("DICE_ROLLER_URL", "http://127.0.0.1:8000"),
            die_service_url=env.url("DIE_SERVICE_URL", "http://127.0.0.1:8001") if remote else None,
            async_rolls=env.flag("ASYNC_ROLLS", False),
            sign_in=env.flag("SIGN_IN", False),
            session_secret=env.secret("SESSION_SECRET", MIN_SECRET),
            sessions_file=Path(file) if (file := env.text("SESSIONS_FILE")) else None,
            max_pages=env.integer("MAX_PAGES", 100, 1, 10_000),
            max_rolls=env.integer("MAX_ROLLS", 100, 1, 10_000),
            connect_timeout=env.number("ROLLER_CONNECT_TIMEOUT", 2.0, 0.01, 60.0),
            timeout=env.number("ROLLER_TIMEOUT", 15.0, 0.01, 600.0),
            connections=env.integer("ROLLER_CONNECTIONS", 2000, 1, 100_000),
            list_timeout=env.number("DICE_LIST_TIMEOUT", 2.0, 0.01, 60.0),
            telemetry_dir=Path(directory) if (directory := env.text("TELEMETRY_DIR")) else None,
            learn_socket=Path(path) if (path := env.text("LEARN_SOCKET")) else None,
            tempo_url=env.optional_url("TEMPO_URL"),
            loki_url=env.optional_url("LOKI_URL"),
            prometheus_url=env.optional_url("PROMETHEUS_URL"),
            alertmanager_url=env.optional_url("ALERTMANAGER_URL"),
            grafana_url=env.optional_url("GRAFANA_URL"),
        )
