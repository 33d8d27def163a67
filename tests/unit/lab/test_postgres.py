from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import LabError
from lab.supervise import postgres_home
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.postgres_home import Home

# As initdb and the server print them.
INITDB_DISK_FULL = """\
creating configuration files ... ok
running bootstrap script ... 12:00:00.000 UTC [7] FATAL:  could not write to file "pg_wal": No space left on device
child process exited with exit code 1
initdb: removing contents of data directory "/run/postgres"
"""
LOCKED = """\
2026-11-25 12:00:00.000 UTC [7] LOG:  starting PostgreSQL 18.6
2026-11-25 12:00:00.000 UTC [7] FATAL:  lock file "postmaster.pid" already exists
2026-11-25 12:00:00.000 UTC [7] HINT:  Is another postmaster running?
"""


def failing(tmp_path: Path, output: str) -> Home:
    """PostgreSQL's programs, each of which prints a text and fails."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in postgres_home.PROGRAMS:
        (programs / name).write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{output}END\nexit 1\n")
        (programs / name).chmod(0o755)
    return Home(programs, tmp_path / "data")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (INITDB_DISK_FULL, "PostgreSQL does not start: no space left on device in {data}"),
        ("initdb: error: could not look up effective user ID 7\n", "does not start: could not look up effective user"),
        ("", "does not start: it printed nothing"),
    ],
)
def test_a_failing_initdb_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str
) -> None:
    home = failing(tmp_path, output)
    monkeypatch.setattr(postgres_home, "find", lambda _: home)
    with pytest.raises(LabError) as failure:
        EmbeddedPostgres(home.data).start()
    assert message.format(data=home.data) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_server_that_fails_to_start_is_reported_with_reason_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = failing(tmp_path, LOCKED)
    home.data.mkdir()
    (home.data / "PG_VERSION").write_text("18")
    monkeypatch.setattr(postgres_home, "find", lambda _: home)
    server = EmbeddedPostgres(home.data)
    with pytest.raises(LabError) as failure:
        server.start()
    assert str(failure.value) == (
        f'PostgreSQL does not start: lock file "postmaster.pid" already exists; its log is {home.data / "log"}'
    )
    server.close()


def test_a_process_with_a_reused_pid_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n0\n5432\n{tmp_path}\n\n0\nready\n")
    assert EmbeddedPostgres(tmp_path).stop_left_behind() is False
