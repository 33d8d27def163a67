"""What is read from the files of a run dir while a lab writes and rotates them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.client import Lab
from lab.mystery.answer import clock
from lab.mystery.case import collect
from lab.supervise.rundir import RunDir

BEGAN = 1_767_268_800.0


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"timestamp": clock(BEGAN + number), "n": number}) + "\n" for number in numbers)


async def test_lines_between_two_times_each_once_though_a_file_is_rotated_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl.1").write_text(lines(-5, 1, 2))
    (logs / "a.jsonl").write_text(lines(3, 4, 99) + '{"timestamp": "half')
    os.utime(logs / "a.jsonl.1", (BEGAN + 2, BEGAN + 2))
    (logs / "old.jsonl").write_text(lines(5))
    os.utime(logs / "old.jsonl", (BEGAN - 1, BEGAN - 1))  # written for the last time before the game
    listed = Path.glob
    rotations = iter([True])

    def glob(self: Path, pattern: str, **more: Any) -> Iterator[Path]:
        paths = list(listed(self, pattern, **more))
        if self == logs and next(rotations, False):
            (logs / "a.jsonl.1").rename(logs / "a.jsonl.2")
            (logs / "a.jsonl").rename(logs / "a.jsonl.1")
            (logs / "a.jsonl").write_text(lines(6))
        return iter(paths)

    monkeypatch.setattr(Path, "glob", glob)
    lab = Lab(RunDir(tmp_path), "http://127.0.0.1:1", state={"stage": 6})
    case = await collect(lab, BEGAN, BEGAN + 60, [])
    assert sorted(line["n"] for line in case.lines) == [1, 2, 3, 4, 6]
