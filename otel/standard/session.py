"""A session for the OTLP/HTTP exporter; a module of its own, because ``requests`` takes a while to import."""

from __future__ import annotations

from typing import Any

import requests


class OneAttemptSession(requests.Session):
    """For the OTLP/HTTP exporter: each request may take ``seconds``, whatever remains of the exporter's own timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(*args, **(kwargs | {"timeout": self._seconds}))
