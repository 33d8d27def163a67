"""Runs the lab's helpers, the exporter and the alert receiver, which have no telemetry of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from aiohttp import web

from web import tuning
from web.settings import Environment, SettingsError


class HelperSettings(Protocol):
    """The settings that every helper has."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


S = TypeVar("S", bound=HelperSettings)


def main(
    name: str,
    read_settings: Callable[[Environment], S],
    create_app: Callable[[S], web.Application],
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run a helper to its end and return the exit status: 0 stopped, 2 bad settings."""
    try:
        settings = read_settings(Environment(environ))
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    app = create_app(settings)
    tuning.reduce_garbage_collection()
    web.run_app(app, host=settings.host, port=settings.port, print=None, access_log=None)
    return 0
