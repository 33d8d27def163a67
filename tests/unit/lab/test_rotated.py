"""Files of JSON lines, which may be rotated, half written or unreadable."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import LabError
from lab.rotated import open_files, whole_lines


def test_older_files_come_first_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 2}\n\n{"n": ')
    (tmp_path / "a.jsonl.1").write_text('{"n": 1}\n')
    (tmp_path / "a.jsonl.gz").write_text("something else\n")
    with ExitStack() as stack:
        found = [(name, list(whole_lines(file))) for name, file in open_files(tmp_path, stack)]
    assert found == [("a.jsonl.1", [b'{"n": 1}\n']), ("a.jsonl", [b'{"n": 2}\n'])]


def test_a_file_that_cannot_be_read_is_an_error_or_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").write_text("{}\n")
    with ExitStack() as stack, pytest.raises(LabError, match=r"/a\.jsonl: Is a directory"):
        list(open_files(tmp_path, stack))
    notes: list[str] = []
    with ExitStack() as stack:
        assert [name for name, _ in open_files(tmp_path, stack, notes)] == ["b.jsonl"]
    assert notes == [f"{tmp_path.name}/a.jsonl: Is a directory"]
