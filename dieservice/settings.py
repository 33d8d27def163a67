"""The die-service's settings, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

from dieservice.catalogue import Specification, read_file
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
    dice: tuple[Specification, ...]  # of the file
    database: DatabaseSettings | None  # None: no database

    @classmethod
    def read(cls, env: Environment) -> Settings:
        in_database = env.choice("DICE_STORE", "file", ("file", "postgres")) == "postgres"
        url = env.text("DATABASE_URL")
        if in_database and not url:
            raise SettingsError("DATABASE_URL is not set, but DICE_STORE=postgres needs it")
        if in_database and not _is_database_url(url):
            # The message leaves out the value: it may hold a password.
            raise SettingsError("DATABASE_URL: must be a URL such as postgresql://user:password@host:5432/dice")
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


def _is_database_url(url: str) -> bool:
    try:
        return url.startswith(("postgresql://", "postgres://")) and bool(parse_dsn(url))
    except psycopg2.ProgrammingError:
        return False
