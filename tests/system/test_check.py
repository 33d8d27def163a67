"""``dicelab check``: green for present features, red for missing ones, with the place that it checked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lab.check import ROWS
from tests.support import matrix
from tests.support.labs import Held, Lab, dicelab


def checked(lab: Lab, *arguments: str) -> tuple[int, dict[str, str]]:
    """Exit status, and each feature's mark and text."""
    process = dicelab("check", "--run-dir", lab.run_dir, *arguments)
    output, _ = process.communicate(timeout=100)
    rows = {}
    for line in output.decode().splitlines()[:-1]:
        mark, feature, said = line[0], line[2:30].strip(), line[30:].strip()
        rows[feature] = f"{mark} {said}"
    return process.returncode, rows


@pytest.mark.parametrize("stage", matrix.STAGES)
def test_a_running_stage_has_all_its_features(stage_lab: Callable[[int], Lab], stage: int) -> None:
    code, rows = checked(stage_lab(stage))
    expected = {row.feature for row in ROWS if row.first_stage <= stage}
    assert rows.keys() == expected
    assert {row for row in rows.values() if row.startswith("✘")} == set()
    assert {feature for feature, row in rows.items() if "not running" in row} <= {
        *("Service dependency viz", "Log aggregation (Loki)", "Selective log routing"),
        *("Request rate panels", "Latency percentiles", "Error rate tracking"),
        *("Database metrics panels", "Usage analytics panels"),
    }
    assert code == 0


def test_missing_features_are_red(stage_lab: Callable[[int], Lab]) -> None:
    code, rows = checked(stage_lab(2), "--stage", "4", "--timeout", "0.5")
    assert code == 1
    red = {feature for feature, row in rows.items() if row.startswith("✘")}
    assert red == {
        "Die Service",
        "GET /roll-async",
        "GET /dice",
        "Service-to-service metrics",
        "Async operation metrics",
        "Parent/child spans",
        "Concurrent operation traces",
        "Performance testing",
    }
    assert "no die-service in" in rows["Die Service"]


def test_broken_features_are_red(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(3)
    with closing(Held(lab, "die-service")):
        code, rows = checked(lab, "--timeout", "0.5")
    assert code == 1
    assert rows["Die Service"].startswith("✘")
    assert "503" in rows["GET /roll"]
    assert rows["Structured JSON logs"].startswith("✔")


def test_a_lab_elsewhere_is_checked_as_far_as_its_addresses_reach(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(3)
    code, rows = checked(lab, "--stage", "3", "--url", lab.front)
    assert code == 0, rows
    green = {feature for feature, row in rows.items() if row.startswith("✔")}
    assert {
        "Dice Roller API",
        "Die Service",
        "GET /dice",
        "Custom business metrics",
        "Basic traffic generation",
    } <= green
    # There are no files to look into, and no engines.
    assert rows["Structured JSON logs"] == "– loki is not running"  # noqa: RUF001
    assert rows["Distributed traces"] == "– tempo is not running"  # noqa: RUF001
    assert "the Collector" in rows["Multi-service traffic"]
    die_service = f"die-service={lab.url('die-service')}"
    code, rows = checked(
        lab, "--stage", "3", "--timeout", "0.2", "--url", die_service, "--url", "http://frontend.invalid"
    )
    assert code == 1
    assert rows["Dice Roller API"].endswith("the address of the dice-roller is not known: --url dice-roller=URL")
    assert rows["GET /dice"].startswith("✔")
    assert rows["GET /roll"].startswith("✘")


def test_without_a_lab_check_fails(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1)
    lab.stop()
    process = dicelab("check", "--run-dir", lab.run_dir)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output.decode().startswith("dicelab: nothing runs in ")


def test_nothing_is_waited_for_where_a_part_is_missing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        process = dicelab("check", "--stage", "6", "--timeout", "4", "--url", url, "--run-dir", tmp_path / "run")
        output, _ = process.communicate(timeout=60)  # with a wait for each of the 30 features it would take two minutes
    assert process.returncode == 1
    assert "✔" not in output.decode()
