"""``python -m lab.mystery``: the table of situations, from recorded cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.client import ROLLER
from lab.mystery import answer, files
from lab.mystery.__main__ import main
from lab.mystery.plan import commitment, draw
from lab.mystery.situations import ROLLER_DIE_SERVICE, Facets
from tests.unit.lab.mystery.cases import BEGAN, Roll, case, truth

PLAN = draw(1, 2, Facets(6)).document()


def slow(roll: Roll) -> None:
    roll.network[ROLLER] = 0.9


def record(directory: Path, moved: bool) -> None:
    question = answer.question(Facets(6).components, BEGAN, None, commitment("00ff", PLAN))
    right = replace(truth(ROLLER_DIE_SERVICE, "slow-network"), situation="die-service-slow")
    seen: dict[str, Any] = {
        "moved": moved,
        "noticed_seconds": 2.5 if moved else None,
        "faces_wrong": [],
        "alerts": {"HighLatency": 9.0},
    }
    files.prepare(directory)
    files.write(directory, case(slow), right, question, seen, PLAN, "00ff")


def test_the_table_names_the_situation_of_each_case_whatever_its_directory_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "one", moved=True)
    status = main(["admit", str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| die-service-slow")]
    assert len(rows) == 1
    assert rows[0].startswith(f"| die-service-slow | {ROLLER_DIE_SERVICE} | 2.5 s | 9.0 s, HighLatency | ")
    assert status == 1  # with a single case the best constant answer is right, which is above the limit


def test_a_situation_that_nobody_notices_is_not_admitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "one", moved=False)
    assert main(["admit", str(tmp_path)]) == 1
    assert "| not at all |" in capsys.readouterr().out


@pytest.mark.parametrize("files_there", [["x"], []])
def test_an_invalid_case_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files_there: list[str]
) -> None:
    for name in files_there:
        (tmp_path / name).mkdir()
    assert main(["admit", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("lab.mystery: ")
    assert errors.count("\n") == 1


def test_a_missing_directory_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["admit", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("lab.mystery: ")


def test_recording_without_a_lab_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", str(tmp_path / "cases"), "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
