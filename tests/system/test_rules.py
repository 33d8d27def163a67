"""The alerting and recording rules, tested by promtool: what fires, what must not, and the runbooks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.queries import parse

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


def promtool(*arguments: str | Path) -> str:
    """Run it with less priority than labs of other tests, whose times are measured; returns what is wrong."""
    command = ["nice", "-n", "10", "promtool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_rules_are_valid() -> None:
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES) == ""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Path, Future[str]]]:
    """What is wrong in each file of cases, two files at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(promtool, "test", "rules", path) for path in CASES}


# A case that needs a day of samples takes promtool half a minute of CPU time.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_only_when_they_should(outcomes: dict[Path, Future[str]], path: Path) -> None:
    assert outcomes[path].result() == ""


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
