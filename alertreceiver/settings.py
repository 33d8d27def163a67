"""The alert receiver's settings, from environment variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from web.settings import Environment, SettingsError


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    alert_log: Path | None  # the file that gets a line for each alert; None: standard output
    webhook_url: URL | None = field(default=None, repr=False)  # may hold a token; None: nothing is passed on
    allowed_hosts: Sequence[str] = ()  # further host names under which Alertmanager reaches it

    @classmethod
    def read(cls, env: Environment) -> Settings:
        return cls(
            host=env.text("ALERT_RECEIVER_HOST", "127.0.0.1"),
            port=env.integer("ALERT_RECEIVER_PORT", 8025, 0, 65535),
            alert_log=Path(file) if (file := env.text("ALERT_LOG")) else None,
            webhook_url=_webhook_url(env.text("ALERT_WEBHOOK_URL")),
            allowed_hosts=env.names("ALLOWED_HOSTS"),
        )


def _webhook_url(value: str) -> URL | None:
    if not value:
        return None
    try:
        url = URL(value)
        good = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        good = False
    if not good:
        # The message leaves out the value: it may hold a token.
        raise SettingsError("ALERT_WEBHOOK_URL: must be a URL such as https://chat.example/hooks/lab")
    return url
