"""The alerting rules: each has its cases, texts and a runbook."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from lab.paths import ROOT

RULES = sorted((ROOT / "compose" / "prometheus" / "rules").glob("*.yml"))
CASES = sorted((ROOT / "tests" / "rules").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = {
    "ServiceDown",
    "HighErrorRatio",
    "HighLatency",
    "DatabasePoolExhausted",
    "DatabaseDown",
    "ExporterDown",
    "TelemetryDropped",
    "PipelineLoss",
    "PipelineBacklog",
    "TempoRestarted",
    "TracesNotStored",
    "NotificationsFailing",
    "Saturation",
    "NoTraffic",
    "RollAvailabilityBurn",
    "RollLatencyBurn",
}


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    fires: set[tuple[str, str]] = set()
    silent: set[str] = set()
    for path in CASES:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", []):
                expected = case.get("exp_alerts", [])
                fires |= {(case["alertname"], alert["exp_labels"]["severity"]) for alert in expected}
                # Silent for a whole test, not just before it fires.
                if not any(
                    other.get("exp_alerts")
                    for other in test["alert_rule_test"]
                    if other["alertname"] == case["alertname"]
                ):
                    silent.add(case["alertname"])
    assert {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()} == fires
    assert silent == ALERTS == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"] + "-" + rule["labels"]["severity"])
def test_an_alert_has_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert "$value" in annotations["description"]
    # Relative to the project's root, so that it is valid wherever the project is.
    assert annotations["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert (ROOT / annotations["runbook_url"]).is_file()


def test_runbooks_are_complete() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == ALERTS
    for path in RUNBOOKS.glob("*.md"):
        text = path.read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert headings == [path.stem, "What it means", "Confirm it", "Provoke it", "Fix it"]
        for linked in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (RUNBOOKS / linked).is_file(), (path.name, linked)
