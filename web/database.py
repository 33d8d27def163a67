"""The address of a PostgreSQL database, for the services that have one: the others do not load the client library."""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import parse_dsn

from web.settings import Environment, SettingsError


def database_url(env: Environment) -> str:
    """``DATABASE_URL``; empty where it is not set.

    Raises:
        SettingsError: for an invalid value; the message omits the value, because it may contain a password.
    """
    url = env.text("DATABASE_URL")
    try:
        if not url or (url.startswith(("postgresql://", "postgres://")) and parse_dsn(url)):
            return url
    except psycopg2.ProgrammingError:
        pass
    raise SettingsError("DATABASE_URL: must be a URL such as postgresql://user:password@host:5432/dice")
