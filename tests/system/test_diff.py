"""``dicelab diff`` with real labs. The tests of the guides check its text for all stages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.labs import dicelab, processes_of


def test_two_stages_are_started_compared_and_cleared_away(tmp_path: Path) -> None:
    process = dicelab("diff", "4", "5", "--json", "--seed", "11", TMPDIR=str(tmp_path), ROLL_DELAY="5", DICE_STORE="x")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output.decode()
    found = json.loads(output)
    sections = [name for name, part in found.items() if isinstance(part, dict) and "added" in part]
    names = {section: {entry["name"] for entry in found[section]["added"]} for section in sections}
    assert names["metrics"] == {
        f"die-service database_{name}"
        for name in (
            "queries_total",
            "query_duration_seconds",
            "connection_pool_size",
            "connection_pool_available",
        )
    }
    assert names["spans"] == {"die-service SELECT"}
    assert {"db_query_type", "db_query_duration_ms", "db_result_count"} <= names["log_fields"]
    assert not names["routes"]
    assert not any(found[section]["removed"] for section in sections)
    roll, batch = found["traces"]
    assert roll["before"]["answer"] == roll["after"]["answer"]  # the same seed
    assert roll["after"]["tree"][: len(roll["before"]["tree"])] == roll["before"]["tree"]
    assert roll["after"]["tree"][-1].split()[-1] == "SELECT"
    assert batch["before"]["answer"] == batch["after"]["answer"]
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_stage_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    process = dicelab("diff", "1", "2", TMPDIR=str(tmp_path), HEADER_TIMEOUT="soon")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    (line,) = output.decode().splitlines()
    assert line.startswith("dicelab: stage 1 does not start: ")
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
