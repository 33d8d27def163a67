"""The files of a run dir."""

from __future__ import annotations

import json
from pathlib import Path

from lab.supervise.rundir import RotatingFile


def test_log_files_rotate_at_line_ends(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "service.jsonl", max_bytes=1000, backups=2)
    for number in range(100):
        file.write(b'{"number": %d}\n' % number * 3)
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["service.jsonl", "service.jsonl.1", "service.jsonl.2"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 1000
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert (tmp_path / "service.jsonl").read_text().endswith('{"number": 99}\n')
