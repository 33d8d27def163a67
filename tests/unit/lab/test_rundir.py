"""The files of a run dir."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.cli import main
from lab.supervise.rundir import RotatingFile, RunDir
from tests.support.limits import file_size_limit


def test_files_of_an_earlier_lab_become_private(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    for directory in (run / "logs", run / "engines" / "tempo"):
        directory.mkdir(parents=True)
    files = [run / "dicelab.log", run / "logs" / "frontend.jsonl.1", run / "engines" / "tempo" / "program", outside]
    for file in files:
        file.write_text("")
        file.chmod(0o755)
    (run / "logs" / "link").symlink_to(outside)
    for directory in (run, run / "logs", run / "engines"):
        directory.chmod(0o755)
    RunDir(run).claim()
    assert {stat.S_IMODE(path.lstat().st_mode) for path in (run, *run.rglob("*")) if not path.is_symlink()} == {
        0o700,  # directories, and the program
        0o600,  # the lock
    }
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


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


def test_a_line_that_does_not_fit_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "service.jsonl"
    file = RotatingFile(path)
    file.write(b"one\n")
    with file_size_limit(10), pytest.raises(OSError, match="too large"):
        file.write(b"two\nthree\n")  # the first write is short, the second one fails
    assert path.read_bytes() == b"one\n"
    file.write(b"four\n")
    file.close()
    assert path.read_bytes() == b"one\nfour\n"


def test_a_failed_rotation_is_tried_again(tmp_path: Path) -> None:
    path, obstacle = tmp_path / "service.jsonl", tmp_path / "service.jsonl.1"
    file = RotatingFile(path, max_bytes=10, backups=1)
    file.write(b"one\n")
    obstacle.mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            file.write(b"two two\n")
    obstacle.rmdir()
    file.write(b"two two\n")
    file.close()
    assert obstacle.read_bytes() + path.read_bytes() == b"one\ntwo two\n"


@contextmanager
def another_user() -> Iterator[None]:
    """Other users cannot enter the directories of tests; root can enter those of all users."""
    if os.geteuid():
        pytest.skip("only root can act as another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["down"]])
def test_a_run_dir_that_cannot_be_entered_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--run-dir", str(tmp_path / "none")]) in (0, 3)  # imports what another user cannot read
    capsys.readouterr()
    run_dir = tmp_path / "run"
    RunDir(run_dir).claim()
    tmp_path.chmod(0o700)
    with another_user():
        assert main([*command, "--run-dir", str(run_dir)]) == 1
    assert capsys.readouterr() == ("", f"dicelab: run dir {run_dir}: Permission denied\n")


def test_only_private_directories_of_a_killed_lab_are_removed(tmp_path: Path) -> None:
    run_dir, mine, other = RunDir(tmp_path / "run"), tmp_path / "dicelab-12345678", tmp_path / "other"
    link = tmp_path / "dicelab-link"
    for directory in (mine, other):
        directory.mkdir()
        (directory / "file").touch()
    link.symlink_to(other)
    run_dir.make()
    missing = tmp_path / "dicelab-missing"
    run_dir.write_state({"directories": [str(path) for path in (mine, other, link, missing)]})
    run_dir.claim()
    assert not mine.exists()
    assert (other / "file").exists()
    assert link.is_symlink()
    assert not run_dir.state_file.exists()


def test_a_report_is_private_and_is_removed_with_the_next_lab(tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    directory.write_cost_report({"rolls": 1})
    assert json.loads(directory.cost_report.read_text()) == {"rolls": 1}
    assert stat.S_IMODE(directory.cost_report.stat().st_mode) == 0o600
    directory.claim()
    assert not directory.cost_report.exists()
