"""The dice-roller's settings, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from web.settings import Environment, ServerSettings


@dataclass(frozen=True)
class DieServiceSettings:
    """The die-service's address and limits; times in seconds."""

    url: URL
    connect_timeout: float
    timeout: float
    connections: int


@dataclass(frozen=True)
class Settings:
    server: ServerSettings
    die_service: DieServiceSettings | None  # None: built-in dice
    async_rolls: bool
    max_rolls: int  # of one batch
    max_delay: float  # seconds; each roll waits a uniform random time up to this
    blocking_wait: bool  # whether that wait blocks the event loop: a mistake for learners to find
    seed: int | None

    @classmethod
    def read(cls, env: Environment) -> Settings:
        remote = env.choice("DICE_SOURCE", "builtin", ("builtin", "die-service")) == "die-service"
        return cls(
            server=ServerSettings.read(env, default_port=8000),
            die_service=DieServiceSettings(
                url=env.url("DIE_SERVICE_URL", "http://127.0.0.1:8001"),
                connect_timeout=env.number("DIE_SERVICE_CONNECT_TIMEOUT", 1.0, 0.01, 60.0),
                timeout=env.number("DIE_SERVICE_TIMEOUT", 4.0, 0.01, 60.0),
                connections=env.integer("DIE_SERVICE_CONNECTIONS", 100, 1, 10_000),
            )
            if remote
            else None,
            async_rolls=env.flag("ASYNC_ROLLS", False),
            max_rolls=env.integer("MAX_ROLLS", 100, 1, 10_000),
            max_delay=env.number("ROLL_DELAY", 1.0, 0.0, 60.0),
            blocking_wait=env.flag("BLOCKING_WAIT", False),
            seed=env.optional_integer("RANDOM_SEED"),
        )
