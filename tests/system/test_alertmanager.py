"""Alertmanager with the shipped configuration, and the alert receiver: for which alerts they send notifications."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from alertreceiver.app import create_app
from alertreceiver.settings import Settings
from lab.paths import COMPOSE
from lab.supervise import engines, stages
from lab.supervise.engines_plan import plan_engines
from tests.support.labs import clean_environ, free_base_port, get, wait_for
from web.settings import Environment

SHIPPED = COMPOSE / "alertmanager" / "alertmanager.yml"
ALERTMANAGER = next(engine for engine in engines.ENGINES if engine.name == "alertmanager")
RECEIVER = next(engine for engine in engines.ENGINES if engine.name == "alert-receiver")


@dataclass
class Running:
    url: str
    log: Path

    def fire(self, *alerts: dict[str, str]) -> None:
        annotations = {"summary": "it is wrong", "description": "very (1)", "runbook_url": "docs/runbooks/X.md"}
        body = json.dumps([{"labels": labels, "annotations": annotations} for labels in alerts]).encode()
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts", body, {"Content-Type": "application/json"}, method="POST"
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()

    def muted(self) -> set[tuple[str, str]]:
        """Name and job of the alerts that a cause mutes."""
        response: list[dict[str, Any]] = get(f"{self.url}/api/v2/alerts").json
        return {
            (alert["labels"]["alertname"], alert["labels"].get("job", ""))
            for alert in response
            if alert["status"]["inhibitedBy"]
        }

    def notified(self) -> list[dict[str, Any]]:
        written = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in written.split("\n")[:-1]]  # without a line that is being written


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Running]:
    """Both as `dicelab up` starts them."""
    base, logs = free_base_port(), tmp_path / "logs"
    logs.mkdir()
    plan = plan_engines(stages.load(1), base, tmp_path / "engines", logs)
    assert plan.has("alertmanager")
    plan.prepare({})
    processes = []
    for engine, binary in plan.found:
        if engine in (ALERTMANAGER, RECEIVER):
            variables = plan.variables("")
            command = plan.command(engine, binary, variables)
            processes.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=clean_environ(**variables),
                )
            )
    try:
        for engine in (ALERTMANAGER, RECEIVER):
            wait_for(lambda engine=engine: responds(plan.url(engine) + engine.ready_path))  # type: ignore[misc]
        yield Running(plan.url(ALERTMANAGER), logs / "alerts.jsonl")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)


def responds(url: str) -> bool:
    try:
        return get(url).status == 200
    except OSError:
        return False


def test_the_configuration_is_valid() -> None:
    checked = subprocess.run(["amtool", "check-config", SHIPPED], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_cause_is_notified_and_its_symptoms_are_muted(alertmanager: Running) -> None:
    page = {"severity": "page"}
    alertmanager.fire(
        {"alertname": "DatabaseDown", **page},
        {"alertname": "HighErrorRatio", "job": "frontend", **page},
        {"alertname": "HighErrorRatio", "job": "die-service", **page},
        {"alertname": "RollAvailabilityBurn", **page},
        {"alertname": "ExporterDown", "job": "postgres-exporter", "severity": "ticket"},
        {"alertname": "TelemetryDropped", "job": "frontend", "signal": "traces", "severity": "ticket"},
    )
    wait_for(lambda: len(alertmanager.notified()) >= 2, say="the notifications")
    lines = alertmanager.notified()
    assert sorted(line["alert"] for line in lines) == ["DatabaseDown", "TelemetryDropped"]
    assert alertmanager.muted() == {
        ("HighErrorRatio", "frontend"),
        ("HighErrorRatio", "die-service"),
        ("RollAvailabilityBurn", ""),
        ("ExporterDown", "postgres-exporter"),
    }
    (line,) = [line for line in lines if line["alert"] == "DatabaseDown"]
    assert line["message"] == "DatabaseDown fires: it is wrong"
    assert (line["level"], line["logger"], line["status"]) == ("WARNING", "alerts", "firing")
    assert line["runbook_url"] == "docs/runbooks/X.md"


def test_without_a_cause_the_deepest_symptom_is_notified(alertmanager: Running) -> None:
    alertmanager.fire(
        *({"alertname": "HighErrorRatio", "job": job, "severity": "page"} for job in ("frontend", "dice-roller"))
    )
    wait_for(alertmanager.notified, say="the notification")
    assert [line["labels"]["job"] for line in alertmanager.notified()] == ["dice-roller"]
    assert alertmanager.muted() == {("HighErrorRatio", "frontend")}


def test_an_engine_alert_does_not_mute_user_symptoms(alertmanager: Running) -> None:
    alertmanager.fire(
        {"alertname": "ServiceDown", "job": "tempo", "severity": "ticket"},
        {"alertname": "PipelineBacklog", "job": "otel-collector", "severity": "ticket"},
        {"alertname": "HighErrorRatio", "job": "frontend", "severity": "page"},
    )
    wait_for(lambda: len(alertmanager.notified()) == 2, say="two notifications")
    assert {line["alert"] for line in alertmanager.notified()} == {"ServiceDown", "HighErrorRatio"}
    assert alertmanager.muted() == {("PipelineBacklog", "otel-collector")}


NOTIFICATION = {
    "alerts": [
        {
            "status": "resolved",
            "labels": {"alertname": "ServiceDown", "job": "frontend"},
            "annotations": {"summary": "frontend is down", "description": "0", "runbook_url": "docs/runbooks/X.md"},
            "startsAt": "2026-01-02T03:04:05Z",
            "endsAt": "2026-01-02T03:05:05Z",
        }
    ]
}


def receiver_settings(log: Path, webhook: URL) -> Settings:
    return Settings.read(Environment({"ALERT_LOG": str(log), "ALERT_WEBHOOK_URL": str(webhook)}))


def test_an_invalid_webhook_stops_the_start_and_is_not_shown() -> None:
    for address in ("ftp://chat.example/secret", "chat.example/secret", "http://"):
        process = subprocess.run(
            [sys.executable, "-m", "alertreceiver"],
            check=False,
            capture_output=True,
            text=True,
            env=clean_environ(ALERT_WEBHOOK_URL=address),
        )
        assert process.returncode == 2
        assert process.stderr.startswith("alerts: ALERT_WEBHOOK_URL: must be a URL")
        assert "secret" not in process.stderr


async def test_a_webhook_gets_each_notification_and_a_failure_is_reported(tmp_path: Path) -> None:
    passed_on: list[Any] = []
    status = 200

    async def hook(request: web.Request) -> web.Response:
        passed_on.append(await request.json())
        return web.Response(status=status)

    webhook = web.Application()
    webhook.router.add_post("/hook", hook)
    log = tmp_path / "alerts.jsonl"
    async with (
        TestServer(webhook) as server,
        TestClient(TestServer(create_app(receiver_settings(log, server.make_url("/hook"))))) as receiver,
    ):
        assert (await receiver.post("/", json=NOTIFICATION)).status == 200
        assert passed_on == [NOTIFICATION]
        (line,) = [json.loads(text) for text in log.read_text().splitlines()]
        assert line["message"] == "ServiceDown is resolved: frontend is down"
        assert (line["level"], line["ends_at"]) == ("INFO", "2026-01-02T03:05:05Z")
        metrics = await (await receiver.get("/metrics")).text()
        assert 'alerts_received_total{alertname="ServiceDown",status="resolved"} 1.0' in metrics
        # Alertmanager treats a 502 as a failure, counts it and tries again; nothing is written twice.
        status = 500
        assert (await receiver.post("/", json=NOTIFICATION)).status == 502
        assert len(log.read_text().splitlines()) == 1
        # A page of another site can send text, but not JSON.
        text = {"Content-Type": "text/plain"}
        assert (await receiver.post("/", data=json.dumps(NOTIFICATION), headers=text)).status == 415
        assert len(log.read_text().splitlines()) == 1
        wrongs: list[Any] = [{}, [], {"alerts": [{}]}]
        for wrong in wrongs:
            assert (await receiver.post("/", json=wrong)).status == 400


def test_without_a_file_the_receiver_writes_to_stdout() -> None:
    port = free_base_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "alertreceiver"],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environ(ALERT_RECEIVER_PORT=str(port)),
    )
    try:
        wait_for(lambda: responds(f"http://127.0.0.1:{port}/readyz"))
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(NOTIFICATION).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        started = time.time()
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
        assert process.stdout
        line = json.loads(process.stdout.readline())
        assert line["timestamp"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started - 1))
    finally:
        process.terminate()
        process.communicate(timeout=10)
