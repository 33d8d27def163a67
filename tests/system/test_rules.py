"""The alerting and recording rules, tested by promtool: which alerts fire and which must not; the runbooks' queries."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from lab.paths import ROOT
from tests.support.queries import parse, queries

RULES = sorted((ROOT / "compose" / "prometheus" / "rules").glob("*.yml"))
CASES = sorted((ROOT / "tests" / "rules").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"


def promtool(*arguments: str | Path) -> str:
    """Run promtool with a lower priority than labs of other tests, whose times are measured; returns its errors."""
    command = ["nice", "-n", "10", "promtool", *arguments]
    # Fewer garbage collections, with 200 MB of memory, save a fifth of the CPU time.
    environment = {**os.environ, "GOGC": "800"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_rules_are_valid() -> None:
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES) == ""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Path, Future[str]]]:
    """The errors of each file of cases, two files at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(promtool, "test", "rules", path) for path in CASES}


# A case that needs a day of samples takes promtool half a minute of CPU time.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_only_when_they_should(outcomes: dict[Path, Future[str]], path: Path) -> None:
    assert outcomes[path].result() == ""


def test_the_executive_dashboard_counts_and_times_an_incident(tmp_path: Path) -> None:
    """The frontend is down for three minutes; after ten seconds somebody is called."""
    asked = {
        (query.panel, index): query.filled()
        for panel in ("Incidents", "Time to detect, time to recover")
        for index, query in enumerate(query for query in queries("executive") if query.panel == panel)
    }
    active, undetected = 34 * 5, 2 * 5  # seconds, from the number of evaluations
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
    assert promtool("test", "rules", tmp_path / "incident.yml") == ""


def test_queries_of_the_runbooks_parse() -> None:
    queries: list[tuple[str, str]] = []
    for path in RUNBOOKS.glob("*.md"):
        found = re.findall(r"```(promql|logql|traceql)\n(.+?)\n```", path.read_text(), re.DOTALL)
        assert found, path.name
        queries += found
    for (language, query), said in zip(queries, parse(queries), strict=True):
        assert not said.errors, (language, query, said.errors)
