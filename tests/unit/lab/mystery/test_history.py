from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import LabError
from lab.cli import main
from lab.mystery.history import History


def test_games_are_kept_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(tmp_path)
    assert history.read() == []
    assert main(["mystery", "history", "--run-dir", str(tmp_path)]) == 0
    assert "No game" in capsys.readouterr().out
    for points in (40, 100):
        history.add({"at": "2026-01-01", "score": points, "level": 2, "situation": "sampling"})
    assert [game["score"] for game in history.read()] == [40, 100]
    assert main(["mystery", "history", "--run-dir", str(tmp_path)]) == 0
    assert "2 games, 70 points on average" in capsys.readouterr().out
    assert main(["mystery", "history", "--json", "--run-dir", str(tmp_path)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_invalid_lines_are_left_out(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add({"score": 1, "level": 1})
    with open(tmp_path / "mystery" / "history.jsonl", "a") as file:
        file.write('{"score": "x"}\n[]\nhalf a li')
    assert len(history.read()) == 1


def test_an_unreadable_file_is_reported_in_one_line(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add({"score": 1, "level": 1})
    (tmp_path / "mystery" / "history.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="cannot be read"):
        history.read()
