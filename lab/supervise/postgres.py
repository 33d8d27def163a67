"""The embedded PostgreSQL: a real server from a wheel, with its data in the run dir.

The lab connects as superuser, who can run programs as the server's system user. So only the user who runs the lab may
connect: the server listens on no TCP port, but on a Unix socket in a directory of mode 0700, and gets the user of each
connection from the kernel (peer authentication).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from lab import LabError
from lab.supervise import postgres_home
from lab.supervise.postgres_home import Home
from lab.supervise.private import private_directory
from lab.waiting import within

DATABASE = "dice"
SUPERUSER = "postgres"
PORT = 5432  # part of the socket's name; nothing listens on TCP
START_TIMEOUT = 60.0  # seconds; after a crash the server first replays its write-ahead log
STOP_TIMEOUT = 30.0
NO_SPACE = "No space left on device"
# Indexes of lines in postmaster.pid.
STATUS_LINE = 7
SOCKET_LINE = 4


def socket_in(directory: Path) -> Path:
    """The path of the server's socket in a directory; clients are given the directory only."""
    return directory / f".s.PGSQL.{PORT}"


def url(socket_directory: Path) -> str:
    """The connection URL of the database behind a socket."""
    return f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(str(socket_directory))}"


class EmbeddedPostgres:
    """One server on one data directory. All calls block; run them in a thread.

    Args:
        data: the data directory, or a link to it where the lab runs as root.

    Attributes:
        socket_directory: the directory of the server's socket. It is set by the first start, and then stays the same.
    """

    def __init__(self, data: Path, max_connections: int = 100) -> None:
        self._data = data
        self._max_connections = max_connections
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_directory: Path | None = None

    @property
    def url(self) -> str:
        return url(self.socket_directory) if self.socket_directory else ""

    @property
    def log(self) -> Path:
        return self._data / "log"

    @property
    def pid(self) -> int | None:
        """The server's process id, or ``None`` when it does not run."""
        return self._process.pid if self._process and self.running() else None

    def start(self) -> None:
        """Initialise the data directory if it is new, start the server, create the database.

        First stops a server that an earlier lab has left running on this data.

        Raises:
            LabError: when it does not start.
        """
        try:
            home = postgres_home.find(self._data)
            self.stop_left_behind()
            if not (home.data / "PG_VERSION").exists():
                self._initialise(home)
            _write_access_rules(home)
            self._launch(home, self._open_socket_directory(home))
            self._create_database()
        except (OSError, psycopg2.Error) as error:
            self.stop()
            reason = getattr(error, "strerror", None) or str(error).strip()
            raise LabError(f"PostgreSQL does not start: {reason}; its log is {self.log}") from None

    def stop(self) -> None:
        """Stop the server and break its connections; does nothing when none runs."""
        if self._process is None or not self.running():
            return
        for number in (signal.SIGINT, signal.SIGQUIT):  # fast, then immediate
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
                return

    def close(self) -> None:
        """Stop the server and remove its socket's directory."""
        self.stop()
        if self.socket_directory is not None:
            shutil.rmtree(self.socket_directory, ignore_errors=True)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop_left_behind(self) -> bool:
        """Stop a server that a killed lab has left running on this data; returns whether there was one."""
        lines = self._status()
        pid = int(lines[0]) if lines and lines[0].isdigit() else None
        if pid is None or self.running():
            return False
        found = _serves(pid, self._data)
        if found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            for _ in within(STOP_TIMEOUT):
                if not _serves(pid, self._data):
                    break
            else:
                raise LabError(f"the PostgreSQL that an earlier lab left behind, process {pid}, does not stop")
        directory = Path(lines[SOCKET_LINE]) if lines[SOCKET_LINE:] else None
        if directory is not None and directory != self.socket_directory:
            _remove_socket(directory)
            with suppress(OSError):  # not empty: earlier versions put the socket into the data directory
                directory.rmdir()
        return found

    def _initialise(self, home: Home) -> None:
        result = subprocess.run(
            [
                *(home.programs / "initdb", "--pgdata", home.data, "--username", SUPERUSER),
                *("--auth=peer", "--encoding=utf8", "--no-instructions"),
            ],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environ(),
            cwd="/",
            start_new_session=True,
            **home.run_as(),
        )
        if result.returncode:
            raise LabError(f"PostgreSQL does not start: {_reason(result.stderr.splitlines(), home.data)}")

    def _open_socket_directory(self, home: Home) -> Path:
        if self.socket_directory is None:
            self.socket_directory = private_directory(shared=home.account is not None)
            if home.account:
                os.chown(self.socket_directory, home.account.pw_uid, home.account.pw_gid)
        _remove_socket(self.socket_directory)  # left by a server that was killed
        return self.socket_directory

    def _launch(self, home: Home, socket_directory: Path) -> None:
        with _open_log(home.data / self.log.name) as log:
            written = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                [
                    *(home.programs / "postgres", "-D", home.data),
                    *("-c", "listen_addresses=", "-c", f"port={PORT}"),
                    *("-c", f"max_connections={self._max_connections}"),
                    # A list of directories, separated by commas: the quotes protect a comma in the name.
                    *("-c", f'unix_socket_directories="{socket_directory}"', "-c", "unix_socket_permissions=0700"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environ(),
                cwd="/",
                start_new_session=True,
                **home.run_as(),
            )
            for _ in within(START_TIMEOUT):
                if not self.running():
                    log.seek(written)
                    reason = _reason(log.read().decode(errors="replace").splitlines(), home.data)
                    raise LabError(f"PostgreSQL does not start: {reason}; its log is {self.log}")
                lines = self._status()
                if lines[:1] == [str(self._process.pid)] and lines[STATUS_LINE:] == ["ready"]:
                    return
        self.stop()
        raise LabError(f"PostgreSQL is not ready after {START_TIMEOUT:.0f} s; its log is {self.log}")

    def _create_database(self) -> None:
        assert self.socket_directory is not None
        with closing(
            psycopg2.connect(host=str(self.socket_directory), port=PORT, user=SUPERUSER, dbname=SUPERUSER)
        ) as connection:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")

    def _status(self) -> list[str]:
        """The lines of ``postmaster.pid``: process id, data, start, port, socket directory, address, memory, status."""
        try:
            return [line.strip() for line in (self._data / "postmaster.pid").read_text().splitlines()]
        except OSError:
            return []


def _write_access_rules(home: Home) -> None:
    """Write the server's access rules: only the user who runs the lab may connect."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    for name, content in (
        ("pg_hba.conf", f"# Written at each start.\nlocal all {SUPERUSER} peer map=lab\n"),
        ("pg_ident.conf", f'# Written at each start: the user who runs the lab.\nlab "{user}" {SUPERUSER}\n'),
    ):
        # The directory may belong to another user, the server's: follow no link in it, and open no existing file.
        new = home.data / f"{name}.new"
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(content)
            if home.account:
                os.fchown(file.fileno(), home.account.pw_uid, home.account.pw_gid)
        new.replace(home.data / name)


def _open_log(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)


def _environ() -> dict[str, str]:
    """The environment without the variables that would configure PostgreSQL's programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _remove_socket(directory: Path) -> None:
    for path in (socket_in(directory), directory / f"{socket_in(directory).name}.lock"):
        with suppress(OSError):
            path.unlink()


def _serves(pid: int, data: Path) -> bool:
    """Whether a process is the server of this data; its id may belong to another process by now."""
    try:
        if sys.platform == "linux":
            return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _reason(output: Sequence[str], data: Path) -> str:
    """The line of a program's output that says why it failed."""
    if any(NO_SPACE in line for line in output):
        return f"no space left on device in {data}"
    for mark in ("FATAL:", "PANIC:", "error:"):
        for line in reversed(output):
            if mark in line:
                return line.partition(mark)[2].strip()
    return output[-1].strip() if output else "it printed nothing"
