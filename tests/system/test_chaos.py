"""``dicelab chaos``, with short phases."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.experiments import EXPERIMENTS
from lab.options import EXPERIMENTS as NAMES
from tests.support.labs import Held, Lab, dicelab, get, wait_for

PATIENCE = {"DIE_SERVICE_CONNECT_TIMEOUT": "0.4", "DB_POOL_TIMEOUT": "0.4"}
SHORT = ("--steady", "1", "--fault", "3", "--rate", "25")


def experiment(lab: Lab, name: str, *arguments: str) -> dict[str, Any]:
    process = dicelab("chaos", name, "--run-dir", lab.run_dir, "--json", *SHORT, *arguments)
    output, _ = process.communicate(timeout=90)
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

    # Few connections everywhere, so that little load is enough to run out of them.
    lab = labs.start(
        tmp_path_factory.mktemp("chaos") / "run",
        5,
        DB_POOL_SIZE="4",
        DIE_SERVICE_CONNECTIONS="20",
        DB_QUERY_TIMEOUT="1",
    )
    yield lab
    lab.stop()


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "collector-down"])
def test_an_experiment_meets_expectations_and_undoes_its_faults(lab: Lab, name: str) -> None:
    assert tuple(EXPERIMENTS) == NAMES
    summary = experiment(lab, name)
    assert summary["put_back"]
    assert summary["answers"]["steady"].keys() == {"200", "p50_ms", "p99_ms"}
    assert set(summary["answers"]["fault"]) & {"503", "504"}
    assert summary["detected_seconds"]
    assert summary["first_good_seconds"] is not None
    # As before the experiment: every part runs, is reached directly and at its usual speed.
    assert get(f"{lab.front}/readyz").status == 200
    state = json.loads((lab.run_dir / "state.json").read_text())
    for service in ("dice-roller", "die-service"):
        pid = next(entry["pid"] for entry in state["services"] if entry["name"] == service)
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        assert f"DIE_SERVICE_URL={lab.url('die-service')}" in environ
        assert f"DATABASE_URL={state['postgres']['url']}" in environ


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
    assert "--engines" in refused("collector-down", "--run-dir", lab.run_dir)
    with closing(Held(lab, "postgres")):
        wait_for(lambda: get(f"{lab.front}/readyz").status == 503)
        assert "not ready to begin with" in refused("roller-killed", "--run-dir", lab.run_dir)
    wait_for(lambda: get(f"{lab.front}/readyz").status == 200)


def test_experiments_cannot_run_concurrently(lab: Lab) -> None:
    with closing(Held(lab, "dice-roller")), pytest.raises(AssertionError, match="another experiment"):
        Held(lab, "postgres")
    wait_for(lambda: get(f"{lab.front}/roll?die=fair").status == 200)


def test_a_slow_die_service_is_shed_but_a_burst_is_not(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(
        3, roll_delay=0, DIE_SERVICE_CONNECTIONS="4", DIE_SERVICE_CONNECT_TIMEOUT="0.3", DIE_SERVICE_TIMEOUT="10"
    )
    url = f"{lab.url('dice-roller')}/roll?die=fair"
    with ThreadPoolExecutor(30) as users:
        burst = [answer.status for answer in users.map(get, [url] * 30)]
        assert burst == [200] * 30
        os.kill(lab.pid("die-service"), signal.SIGSTOP)
        try:
            taken = [users.submit(get, url) for _ in range(4)]
            wait_for(lambda: sum(line["message"] == "Querying die service" for line in lab.logs("dice-roller")) == 34)
            assert get(url).status == 503  # has waited its time for a connection
            started = time.monotonic()
            answers = [get(url) for _ in range(20)]
            assert time.monotonic() - started < 20 * 0.3  # none of these has
            assert {answer.status for answer in answers} == {503}
            assert all("Retry-After" in answer.headers for answer in answers)
            assert "overloaded" in answers[-1].json["detail"]
        finally:
            os.kill(lab.pid("die-service"), signal.SIGCONT)
        assert [answer.result().status for answer in taken] == [200] * 4
        assert [answer.status for answer in users.map(get, [url] * 8)] == [200] * 8
