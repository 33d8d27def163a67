"""The exporter in a running lab: what it measures, what it probes, and what it shows of parts that are down."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest

from lab.chaos.mark import marked
from lab.signals import OPENMETRICS, parse_samples
from tests.support import labs
from tests.support.labs import Held, Lab, get, wait_for
from tests.support.queries import Query, queries

Page = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Stage 5 with its engines, in which Prometheus probes the dice-roller every second through the exporter."""
    lab = labs.start(tmp_path_factory.mktemp("exporter") / "run", 5, "--engines", roll_delay=0, PROBES="true")
    try:
        labs.scrape_every_second(lab)
        yield lab
    finally:
        lab.stop()


def page(lab: Lab, path: str = "/metrics") -> Page:
    """The samples of a page of the exporter: (name, values of the labels…) → value."""
    response = get(lab.engine("exporter") + path, headers={"Accept": OPENMETRICS})
    assert response.status == 200, response.body
    return {(one.name, *one.labels.values()): one.value for one in parse_samples(response.body.decode())}


def query(lab: Lab, expression: str) -> list[dict[str, Any]]:
    url = f"{lab.engine('prometheus')}/api/v1/query?{urlencode({'query': expression})}"
    found: list[dict[str, Any]] = get(url).json["data"]["result"]
    return found


def test_it_measures_the_dice_and_the_run_dir(lab: Lab) -> None:
    samples = page(lab)
    assert samples["dicelab_database_up",] == samples["dicelab_run_dir_up",] == 1
    assert samples["dicelab_dice",] == 3
    assert {name: samples["dicelab_die_error_rate", name] for name in ("fair", "risky", "extreme")} == {
        "fair": 0,
        "risky": 0.1,
        "extreme": 0.5,
    }
    assert samples["dicelab_die_faces", "extreme"] == 6
    assert samples["dicelab_restarts_total", "exporter"] == 0
    assert get(f"{lab.front}/roll?die=fair").status == 200
    for signal in ("logs", "metrics", "traces"):
        wait_for(lambda signal=signal: page(lab)["dicelab_run_dir_bytes", signal] > 0, say=signal)  # type: ignore[misc]


def test_the_newest_line_and_span_are_those_of_the_last_roll(lab: Lab) -> None:
    started = time.time()
    assert get(f"{lab.front}/roll?die=fair").status == 200
    for signal in ("logs", "traces"):
        # A file's time has the resolution of the kernel's tick.
        wait_for(lambda signal=signal: page(lab)["dicelab_newest_timestamp_seconds", signal] > started - 0.1)  # type: ignore[misc]


def test_a_probe_is_a_real_roll(lab: Lab) -> None:
    before = lab.value("frontend", "roll_requests_total", outcome="success")
    samples = page(lab, "/probe?target=frontend&module=roll")
    assert samples["probe_success",] == samples["probe_outcome", "success"] == 1
    assert samples["probe_http_status_code",] == 200
    assert lab.value("frontend", "roll_requests_total", outcome="success") == before + 1


def test_prometheus_scrapes_it_and_probes_through_it(lab: Lab) -> None:
    for expression in (
        'up{job="exporter"} == 1',
        'dicelab_dice{job="exporter"} == 3',
        'probe_success{job="probe",instance="dice-roller"} == 1',
        'probe_duration_seconds{job="probe",instance="dice-roller"} > 0',
    ):
        wait_for(partial(query, lab, expression), timeout=30, say=expression)
    assert query(lab, 'probe_success{instance!="dice-roller"}') == []


def test_promtool_accepts_every_page_of_metrics(lab: Lab) -> None:
    """Names, types, units and help texts, of the services and of all that is part of Dice Lab."""
    own = {name: f"{url}/metrics" for name, url in lab.engines.items() if name in ("exporter", "alert-receiver")}
    pages = {name: f"{url}/metrics" for name, url in lab.services.items()} | own
    pages["probe"] = f"{lab.engine('exporter')}/probe?target=frontend&module=ready"
    assert {"dice-roller", "die-service", "frontend", "exporter"} < pages.keys()
    for name, url in pages.items():
        text = get(url).body
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert checked.returncode == 0, (name, checked.stdout.decode(), checked.stderr.decode())


def test_a_part_that_is_down_is_reported_and_leaves_no_stale_metrics(lab: Lab) -> None:
    with closing(Held(lab, "postgres")) as held:
        samples = wait_for(lambda: lacks(lab, "dicelab_database_up"), say="no database")
        assert not {name for name, *_ in samples if name.startswith("dicelab_di")}
        assert samples["dicelab_run_dir_up",] == 1
        held.hold("dice-roller")
        probed = page(lab, "/probe?target=dice-roller&module=roll")
        assert probed["probe_success",] == 0
        assert probed["probe_outcome", "unreachable"] == 1
        wait_for(partial(query, lab, 'probe_success{instance="dice-roller"} == 0'), timeout=30, say="a failed probe")
    wait_for(lambda: page(lab).get(("dicelab_dice",)) == 3, timeout=40, say="the dice again")
    wait_for(lambda: page(lab)["dicelab_restarts_total", "postgres"] >= 1, say="the restart of the database")


def lacks(lab: Lab, name: str) -> Page | None:
    samples = page(lab)
    return samples if samples[name,] == 0 else None


# --- the executive overview ---

# Nobody rolled a week ago, and the outage may have broken the promise; test_rules.py has an incident's exact values.
ANY_NUMBER = {
    "Rolls against the week before",
    "Minutes of failure left this month",
    "Promise kept this month",
    "Time to detect, time to recover",
}


def test_an_incident_and_an_experiment_are_shown_to_those_who_pay(lab: Lab) -> None:
    """Every query of the dashboard, and the marks of all dashboards, after an outage of the dice-roller."""

    def roll(status: int) -> bool:
        return get(f"{lab.front}/roll?die=fair").status == status

    with marked(lab.run_dir, "die-service-down"), closing(Held(lab, "dice-roller")):
        wait_for(lambda: roll(503) and query(lab, "incident:active == 1"), timeout=60, say="an alert that pages")
        mark = 'dicelab_experiment_running{experiment="die-service-down"} == 1'
        wait_for(partial(query, lab, mark), say=mark)
    wait_for(lambda: roll(200) and query(lab, "incident:active == 0"), timeout=60, say="the end of the incident")
    asked = [one for one in queries("executive") if one.language == "promql"]
    assert len({one.panel for one in asked}) == 7  # people are counted in Loki
    for one in asked:
        wait_for(lambda one=one: roll(200) and shows(lab, one), say=f"{one.panel}: {one.filled()}")  # type: ignore[misc]
    wait_for(lambda: not query(lab, "dicelab_experiment_running"), say="the end of the mark")


def shows(lab: Lab, asked: Query) -> bool:
    values = [float(row["value"][1]) for row in query(lab, asked.filled())]
    return bool(values) and all(value > 0 or (asked.panel in ANY_NUMBER and math.isfinite(value)) for value in values)
