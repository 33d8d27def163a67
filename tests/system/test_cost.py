"""``dicelab cost`` without engines, against what the lab itself counted and wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.signals import total
from tests.support.labs import Lab, dicelab

REQUESTS = 40


@pytest.fixture
def report_of() -> Callable[..., dict[str, Any]]:
    def run(lab: Lab, *arguments: str) -> dict[str, Any]:
        command = dicelab("cost", "--requests", str(REQUESTS), "--run-dir", lab.run_dir, *arguments)
        output, _ = command.communicate(timeout=110)
        assert command.returncode == 0, output.decode()
        content: dict[str, Any] = json.loads(output)
        return content

    return run


def test_the_cost_of_a_roll_is_measured(
    stage_lab: Callable[..., Lab], report_of: Callable[..., dict[str, Any]]
) -> None:
    lab = stage_lab(6)
    counted = {"handler": "/roll"}
    before = total(lab.samples("dice-roller"), "http_requests_total", counted)
    report = report_of(lab, "--json", "--rolls-a-day", "1000")
    requests = total(lab.samples("dice-roller"), "http_requests_total", counted) - before
    spans = {(one["service"], one["name"]): one for one in report["span_names"]}
    assert spans["dice-roller", "GET /roll"]["count"] == requests > 0
    assert report["traces"]["kept"] == report["traces"]["requested"] == report["requests"]
    assert spans["dice-roller", "GET /roll"]["asked"] == "query"
    assert spans["dice-roller", "GET"]["asked"] == "map"  # no panel's query finds it; the service map is made from it
    assert spans["dice-roller", "roll {index}"]["asked"] == ""
    # Each service has spans, lines and a page of metrics.
    assert set(report["by_service"]) == set(lab.services) == {"dice-roller", "die-service", "frontend"}
    for name, service in report["by_service"].items():
        assert service["spans"]["raw"] > service["spans"]["compressed"] > 0, name
        assert service["lines"]["raw"] > service["lines"]["compressed"] > 0, name
        assert service["series"] == pytest.approx(len(lab.samples(name)), rel=0.05), name
    # Usage events are what a panel filters for; the other lines of a service are shown as one list.
    assert {one["asked"] for one in report["events"]} == {"filter", "list"}
    assert sum(one["size"] for one in report["events"]) == pytest.approx(
        report["bytes_a_roll"]["lines"]["raw"] * report["rolls"], rel=0.001
    )
    labels = {one["label"]: one for one in report["labels"]}
    assert labels["le"]["contributes"] > labels["die_type"]["contributes"] > 0
    assert len(report["changes"]) == 5
    assert report["projection"]["example_prices"]
    assert report["projection"]["prices"]["rolls_a_day"] == 1000
    assert report["agreement"] == []  # no engine runs
