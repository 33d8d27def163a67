"""Names of span attributes: OpenTelemetry's stable semantic conventions, and their former names.

Telemetry outlives the code that wrote it, so the explorer reads both. https://opentelemetry.io/docs/specs/semconv/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER = {
    "http.request.method": "http.method",
    "http.response.status_code": "http.status_code",
    "url.path": "http.target",
    "url.full": "http.url",
    "server.address": "net.peer.name",
    "db.query.text": "db.statement",
    "db.system.name": "db.system",
    "db.namespace": "db.name",
}


def attribute(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute by its stable name, whether it has that name or the former one; ``None`` if it is missing."""
    return attributes.get(name, attributes.get(FORMER.get(name, "")))
