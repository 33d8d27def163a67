"""``dicelab chaos``, with short phases."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.experiments import EXPERIMENTS
from lab.chaos.faults import Faults
from lab.options import EXPERIMENTS as NAMES
from tests.support.labs import Lab, dicelab, get, wait_for

pytestmark = pytest.mark.usefixtures("high_priority")

PATIENCE = {"DIE_SERVICE_CONNECT_TIMEOUT": "0.4", "DB_POOL_TIMEOUT": "0.4"}
SHORT = ("--steady", "1", "--fault", "3", "--rate", "25")


def experiment(lab: Lab, name: str, *arguments: str) -> dict[str, Any]:
    process = dicelab("chaos", name, "--run-dir", lab.run_dir, "--json", *SHORT, *arguments)
    output, _ = process.communicate(timeout=180)
    summary: dict[str, Any] = json.loads(output)
    unmet = [one for one in summary["expectations"] if one["met"] is False]
    assert unmet == [], summary
    assert summary["expectations"]
    assert process.returncode == 0, summary
    return summary


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One lab for all experiments: each has to undo its faults."""
    from tests.support import labs

    # Few connections everywhere, so that a low load exhausts them.
    lab = labs.start(
        tmp_path_factory.mktemp("chaos") / "run",
        5,
        DB_POOL_SIZE="4",
        DIE_SERVICE_CONNECTIONS="20",
        DB_QUERY_TIMEOUT="1",
    )
    yield lab
    lab.stop()


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not EXPERIMENTS[name].needs])
def test_an_experiment_meets_expectations_and_undoes_its_faults(lab: Lab, name: str) -> None:
    assert tuple(EXPERIMENTS) == NAMES
    summary = experiment(lab, name)
    assert summary["put_back"]
    # The services that reached their server through a proxy; their counters begin at 0 again.
    assert summary["restarted_at_the_end"] == {
        "database-slow": ["die-service"],
        "die-service-slow": ["dice-roller"],
    }.get(name, [])
    assert summary["answers"]["steady"].keys() == {"200", "p50_ms", "p99_ms"}
    assert set(summary["answers"]["fault"]) & {"503", "504"}
    assert summary["detected_seconds"]
    assert summary["first_good_seconds"] is not None
    assert any("the first 200 comes within" in one["text"] for one in summary["expectations"] if one["timed"])
    alerts = [one for one in summary["expectations"] if "alert" in one["text"]]
    assert alerts
    assert {(one["met"], one["seen"]) for one in alerts} == {(None, "not checked, prometheus is not running")}
    assert summary["alerts"] == {}
    # As before the experiment: every part runs, and is reached directly and at its usual speed.
    assert get(f"{lab.front}/readyz").status == 200
    state = json.loads((lab.run_dir / "state.json").read_text())
    for service in ("dice-roller", "die-service"):
        pid = next(entry["pid"] for entry in state["services"] if entry["name"] == service)
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        assert f"DIE_SERVICE_URL={lab.url('die-service')}" in environ
        assert f"DATABASE_URL={state['postgres']['url']}" in environ


# --- experiments on engines ---

ENGINES_TIMEOUT = pytest.mark.timeout(300)  # starting all engines takes a while on a busy machine


@pytest.fixture(scope="module")
def lab_with_engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One for all experiments on engines; its alerts are evaluated every second."""
    from tests.support import labs

    lab = labs.start(tmp_path_factory.mktemp("chaos-engines") / "run", 6, "--engines", roll_delay=0.1)
    labs.scrape_every_second(lab)
    yield lab
    lab.stop()


def verdict(summary: dict[str, Any], text: str) -> dict[str, Any]:
    return next(one for one in summary["expectations"] if text in one["text"])


@ENGINES_TIMEOUT
def test_a_cause_fires_first_and_is_silent_again(lab_with_engines: Lab) -> None:
    """With only Prometheus, which every test machine has."""
    summary = experiment(lab_with_engines, "database-down", "--fault", "18")
    first = verdict(summary, "DatabaseDown is the first alert")
    assert first["met"], first
    assert next(iter(summary["alerts"])) == "DatabaseDown"
    assert summary["alerts"]["DatabaseDown"]["fired_seconds"] < 30
    assert verdict(summary, "alerts fall silent")["met"]
    assert all(times["silent_seconds"] < 120 for times in summary["alerts"].values())


@ENGINES_TIMEOUT
@pytest.mark.engines("tempo", "otel-collector")
def test_tempo_loses_the_last_seconds_and_an_alert_reports_it(lab_with_engines: Lab) -> None:
    summary = experiment(lab_with_engines, "tempo-killed", "--silence", "0")
    assert next(iter(summary["alerts"])) == "TempoRestarted"
    assert verdict(summary, "is the first alert")["met"]
    assert verdict(summary, "fall silent")["met"] is None


@ENGINES_TIMEOUT
@pytest.mark.engines("tempo", "otel-collector")
def test_spans_wait_for_the_collector(lab_with_engines: Lab) -> None:
    summary = experiment(lab_with_engines, "collector-down", "--silence", "0")
    assert verdict(summary, "no trace of that time lacks a span")["met"]


@ENGINES_TIMEOUT
@pytest.mark.engines("loki", "alloy")
def test_lines_wait_for_loki_and_alloy(lab_with_engines: Lab) -> None:
    down = experiment(lab_with_engines, "loki-down", "--silence", "0")
    assert verdict(down, "is in Loki, none twice")["seen"].endswith("lost, 0 doubled")
    killed = experiment(lab_with_engines, "alloy-killed", "--silence", "0")
    assert verdict(killed, "is in Loki, at most")["seen"].startswith("0 of ")
    assert killed["alerts"] == {}


@ENGINES_TIMEOUT
def test_counters_catch_up_with_prometheus(lab_with_engines: Lab) -> None:
    summary = experiment(lab_with_engines, "prometheus-down")
    assert verdict(summary, "afterwards roll_requests_total")["met"]
    assert summary["alerts"] == {}


@ENGINES_TIMEOUT
def test_a_disk_is_filled_only_if_it_was_set_up_for_that(lab_with_engines: Lab) -> None:
    assert "is not a mount point" in refused("prometheus-disk-full", "--run-dir", lab_with_engines.run_dir)


def test_faults_of_a_killed_experiment_are_undone(lab: Lab) -> None:
    process = dicelab("chaos", "database-down", "--run-dir", lab.run_dir, "--steady", "0.5", "--fault", "60")
    wait_for(lambda: get(f"{lab.front}/readyz").status == 503)
    process.kill()
    process.communicate()
    wait_for(lambda: get(f"{lab.front}/roll?die=fair").status == 200)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_faults_of_an_interrupted_experiment_are_undone(lab: Lab, number: int) -> None:
    process = dicelab(
        "chaos", "die-service-down", "--run-dir", lab.run_dir, "--steady", "0.5", "--fault", "60", "--json"
    )
    wait_for(lambda: get(f"{lab.front}/readyz").status == 503)
    process.send_signal(number)
    summary = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 1
    assert summary["interrupted"]
    assert summary["put_back"]
    assert get(f"{lab.front}/roll?die=fair").status == 200


def refused(*arguments: str | Path) -> str:
    process = dicelab("chaos", *arguments)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    return output.splitlines()[-1]


def test_an_impossible_experiment_is_reported(lab: Lab, stage_lab: Callable[[int], Lab]) -> None:
    assert "database-down needs stage 5 or later" in refused("database-down", "--run-dir", stage_lab(2).run_dir)
    for name in ("collector-down", "tempo-killed", "loki-frozen", "alloy-disk-full", "prometheus-down"):
        assert "--engines" in refused(name, "--run-dir", lab.run_dir)
    state = json.loads((lab.run_dir / "state.json").read_text())
    die_service = next(entry["pid"] for entry in state["services"] if entry["name"] == "die-service")
    os.kill(die_service, signal.SIGSTOP)
    try:
        wait_for(lambda: get(f"{lab.front}/readyz").status == 503)
        assert "not ready to begin with" in refused("roller-killed", "--run-dir", lab.run_dir)
    finally:
        os.kill(die_service, signal.SIGCONT)
    wait_for(lambda: get(f"{lab.front}/readyz").status == 200)


# One asks the supervisor for its fault, one kills a process, one has a connection to the database.
@pytest.mark.parametrize("name", ["database-slow", "roller-killed", "pool-exhausted"])
async def test_a_second_experiment_is_refused_before_it_rolls(lab: Lab, name: str) -> None:
    rolls = lab.value("dice-roller", "roll_requests_total")
    async with Faults(lab.state["faults"]):
        reason = await asyncio.to_thread(refused, name, "--run-dir", lab.run_dir)
    assert reason == "dicelab: another experiment runs in this lab"
    assert lab.value("dice-roller", "roll_requests_total") == rolls


def test_a_slow_die_service_is_shed_but_a_burst_is_not(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(
        3, roll_delay=0, DIE_SERVICE_CONNECTIONS="4", DIE_SERVICE_CONNECT_TIMEOUT="1", DIE_SERVICE_TIMEOUT="10"
    )
    url = f"{lab.url('dice-roller')}/roll?die=fair"
    with ThreadPoolExecutor(30) as users:
        burst = [response.status for response in users.map(get, [url] * 30)]
        assert burst == [200] * 30
        os.kill(lab.pid("die-service"), signal.SIGSTOP)
        try:
            taken = [users.submit(get, url) for _ in range(4)]
            wait_for(lambda: sum(line["message"] == "Querying die service" for line in lab.logs("dice-roller")) == 34)
            assert get(url).status == 503  # after the full wait for a connection
            started = time.monotonic()
            responses = [get(url) for _ in range(20)]
            assert time.monotonic() - started < 20  # none of these has waited
            assert {response.status for response in responses} == {503}
            assert all("Retry-After" in response.headers for response in responses)
            assert "overloaded" in responses[-1].json["detail"]
        finally:
            os.kill(lab.pid("die-service"), signal.SIGCONT)
        assert [one.result().status for one in taken] == [200] * 4
        assert [response.status for response in users.map(get, [url] * 8)] == [200] * 8
