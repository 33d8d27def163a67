"""The die-service's settings, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dieservice.catalogue import Specification, read_file
from web.database import database_url
from web.settings import Environment, ServerSettings, SettingsError

DICE_FILE = Path(__file__).parent / "dice.json"


@dataclass(frozen=True)
class DatabaseSettings:
    """PostgreSQL's address and limits; times in seconds."""

    url: str = field(repr=False)  # may hold a password
    pool_size: int
    pool_timeout: float  # waiting for a free connection
    query_timeout: float
    connect_timeout: float


@dataclass(frozen=True)
class Settings:
    server: ServerSettings
    dice: tuple[Specification, ...]  # from DICE_FILE
    database: DatabaseSettings | None  # None: no database

    @classmethod
    def read(cls, env: Environment) -> Settings:
        in_database = env.choice("DICE_STORE", "file", ("file", "postgres")) == "postgres"
        url = database_url(env) if in_database else ""
        if in_database and not url:
            raise SettingsError("DATABASE_URL is not set, but DICE_STORE=postgres needs it")
        return cls(
            server=ServerSettings.read(env, default_port=8001),
            dice=tuple(read_file(Path(env.text("DICE_FILE", str(DICE_FILE))))),
            database=DatabaseSettings(
                url=url,
                pool_size=env.integer("DB_POOL_SIZE", 10, 1, 1000),
                pool_timeout=env.number("DB_POOL_TIMEOUT", 1.0, 0.01, 60.0),
                query_timeout=env.number("DB_QUERY_TIMEOUT", 2.0, 0.01, 60.0),
                connect_timeout=env.number("DB_CONNECT_TIMEOUT", 2.0, 0.01, 60.0),
            )
            if in_database
            else None,
        )
