"""The alert receiver accepts notifications from Alertmanager only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from alertreceiver.app import MAX_NAMES, create_app
from alertreceiver.settings import Settings

ALERT = {
    "status": "firing",
    "labels": {"alertname": "ServiceDown"},
    "annotations": {"summary": "It is down.", "description": "It does not answer.", "runbook_url": "http://localhost/"},
    "startsAt": "2026-01-01T00:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "alert-receiver:8000"}, 200),
        ({"Host": "alerts.lab.example"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil:port"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
async def test_pages_of_other_sites_cannot_send_alerts(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    log = tmp_path / "alerts.jsonl"
    app = create_app(Settings("127.0.0.1", 0, log, allowed_hosts=["alerts.lab.example"]))
    headers = {"Content-Type": "application/json", **headers}
    async with TestClient(TestServer(app)) as client:
        async with client.post("/", data=json.dumps({"alerts": [ALERT]}), headers=headers) as response:
            assert response.status == status
        async with client.get("/metrics", headers={"Host": "evil.example"}) as response:
            assert response.status == 421
    lines = log.read_text().splitlines() if log.exists() else []
    assert [json.loads(line)["alert"] for line in lines] == (["ServiceDown"] if status == 200 else [])


async def test_the_number_of_label_values_is_limited(tmp_path: Path) -> None:
    names = [f"Alert{number}" for number in range(MAX_NAMES + 5)]
    alerts = [ALERT | {"labels": {"alertname": name}} for name in names]
    async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, tmp_path / "alerts.jsonl")))) as client:
        async with client.post("/", json={"alerts": alerts}) as response:
            assert response.status == 200
        async with client.get("/metrics") as response:
            page = await response.text()
    assert page.count("alerts_received_total{") == MAX_NAMES + 1
    assert 'alerts_received_total{alertname="other",status="firing"} 5.0' in page


@pytest.mark.parametrize(
    "wrong", [{"status": "bent"}, {"labels": {"alertname": 5}}, {"labels": {}}, {"annotations": {}}]
)
async def test_an_invalid_notification_is_refused_and_not_counted(tmp_path: Path, wrong: dict[str, object]) -> None:
    async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, tmp_path / "alerts.jsonl")))) as client:
        async with client.post("/", json={"alerts": [ALERT | wrong]}) as response:
            assert response.status == 400
        async with client.get("/metrics") as response:
            assert "alerts_received_total{" not in await response.text()
    assert not (tmp_path / "alerts.jsonl").exists()
