"""The firing alerts from the APIs of Prometheus and Alertmanager, and invalid responses."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from frontend.explorer.model import SourceError
from frontend.explorer.sources.alerts import Alert, Alertmanager, PrometheusAlerts

# As in the documentation of Prometheus's HTTP API.
ANNOTATIONS = {"summary": "frontend is down", "description": "up is 0"}


def active(name: str, state: str, severity: str, at: str) -> dict[str, Any]:
    labels = {"alertname": name, "job": "frontend", "severity": severity}
    return {"labels": labels, "annotations": ANNOTATIONS, "state": state, "activeAt": at, "value": "1e+00"}


async def fetch(kind: type[Alertmanager] | type[PrometheusAlerts], path: str, document: Any) -> list[Alert]:
    app = web.Application()

    async def respond(request: web.Request) -> web.Response:
        return web.json_response(document)

    app.router.add_get(path, respond)
    async with TestServer(app) as server, ClientSession() as session:
        return await kind(lambda: session, server.make_url("")).alerts()


async def test_the_most_urgent_alert_of_prometheus_comes_first() -> None:
    alerts = [
        active("Saturation", "firing", "ticket", "2026-01-02T03:04:05.5Z"),
        active("HighLatency", "pending", "page", "2026-01-02T03:04:05Z"),
        active("ServiceDown", "firing", "page", "2026-01-02T03:05:05.123456789Z"),
    ]
    found = await fetch(PrometheusAlerts, "/api/v1/alerts", {"status": "success", "data": {"alerts": alerts}})
    assert [alert.name for alert in found] == ["ServiceDown", "Saturation"]
    assert found[1] == Alert(
        "Saturation", "frontend", "ticket", "frontend is down", "up is 0", 1767323045_500000000, muted=False
    )


@pytest.mark.parametrize("document", [{}, {"data": {"alerts": [{}]}}, [], "x"])
async def test_an_invalid_response_of_prometheus_is_an_error(document: Any) -> None:
    with pytest.raises(SourceError, match="Prometheus sent an invalid response"):
        await fetch(PrometheusAlerts, "/api/v1/alerts", document)


@pytest.mark.parametrize("document", [[{}], {"status": "error"}, None])
async def test_an_invalid_response_of_alertmanager_is_an_error(document: Any) -> None:
    with pytest.raises(SourceError, match="Alertmanager sent an invalid response"):
        await fetch(Alertmanager, "/api/v2/alerts", document)
