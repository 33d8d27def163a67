"""The alerting and recording rules, tested by promtool: what fires, what must not, and the runbooks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.queries import parse, queries

ROOT = Path(__file__).parents[2]
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
    "NotificationsFailing",
    "Saturation",
    "NoTraffic",
    "RollAvailabilityBurn",
    "RollLatencyBurn",
}


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)


# A case that needs a day of samples takes promtool a minute of CPU time.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_only_when_they_should(path: Path) -> None:
    promtool("test", "rules", path)


def test_the_executives_dashboard_counts_and_times_an_incident(tmp_path: Path) -> None:
    """The frontend is down for three minutes; after ten seconds somebody is called."""
    asked = {
        (query.panel, index): query.filled()
        for panel in ("Incidents", "Time to detect, time to recover")
        for index, query in enumerate(query for query in queries("executive") if query.panel == panel)
    }
    active, undetected = 34 * 5, 2 * 5  # seconds, by the evaluations in which it was so
    expected = dict(zip(asked.values(), [1, active / 60, undetected, active], strict=True))
    case = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "5s",
        "group_eval_order": ["services", "incidents"],
        "tests": [
            {
                "interval": "5s",
                "input_series": [{"series": 'up{job="frontend",instance="a"}', "values": "1x60 0x35 1x83"}],
                "promql_expr_test": [
                    {"expr": text, "eval_time": "15m", "exp_samples": [{"labels": "{}", "value": value}]}
                    for text, value in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "incident.yml").write_text(yaml.safe_dump(case))
    promtool("test", "rules", tmp_path / "incident.yml")


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


def test_runbooks_are_complete_and_their_queries_parse() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == ALERTS
    for path in RUNBOOKS.glob("*.md"):
        text = path.read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert headings == [path.stem, "What it means", "Confirm it", "Provoke it", "Fix it"]
        for linked in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (RUNBOOKS / linked).is_file(), (path.name, linked)
        found = re.findall(r"```(promql|logql|traceql)\n(.+?)\n```", text, re.DOTALL)
        assert found, path.name
        for (language, query), said in zip(found, parse(found), strict=True):
            assert not said.errors, (path.name, language, query, said.errors)
