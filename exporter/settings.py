"""The exporter's settings, from environment variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from web.database import database_url
from web.settings import Environment, SettingsError

TARGETS = "PROBE_TARGETS"


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    database_url: str = field(default="", repr=False)  # may hold a password; empty where there is no database
    run_dir: Path | None = None  # None where there is no run dir, as in a container
    targets: Mapping[str, URL] = field(default_factory=dict)  # the services that may be probed, by name
    probe_timeout: float = 3.5  # seconds
    allowed_hosts: Sequence[str] = ()  # further host names under which Prometheus reaches the exporter

    @classmethod
    def read(cls, env: Environment) -> Settings:
        run_dir = env.text("TELEMETRY_DIR")
        return cls(
            host=env.text("EXPORTER_HOST", "127.0.0.1"),
            port=env.integer("EXPORTER_PORT", 8026, 0, 65535),
            database_url=database_url(env),
            run_dir=Path(run_dir) if run_dir else None,
            targets=dict(map(_target, filter(None, env.text("PROBE_TARGETS").split(",")))),
            probe_timeout=env.number("PROBE_TIMEOUT", 3.5, 0.1, 60.0),
            allowed_hosts=env.names("ALLOWED_HOSTS"),
        )


def _target(text: str) -> tuple[str, URL]:
    name, equals, address = text.strip().partition("=")
    if not name or not equals:
        raise SettingsError(f"{TARGETS}: {text!r} must be a name and a URL such as frontend=http://127.0.0.1:8002")
    return name, Environment({TARGETS: address}).url(TARGETS)
