"""The run dir: where a running lab keeps its state, logs, traces and database."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from lab import LabError
from lab.supervise.full_disk import FULL
from lab.supervise.private import remove_left_behind

# Each log file is rotated at this size, in bytes; this many old ones are kept.
LOG_BYTES = 64 * 1024 * 1024
LOG_BACKUPS = 3
CLAIM_ATTEMPTS = 5
# Files that identify a directory as a run dir.
MARKS = ("lock", "traffic.lock", "dicelab.log")


class RunDir:
    """One run dir. At most one lab runs in it at a time: the lab's process holds a file lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.state_file = self.path / "state.json"
        self.logs = self.path / "logs"
        self.traces = self.path / "traces"
        self.metrics = self.path / "metrics"  # the samples of the last mystery game
        self.postgres = self.path / "postgres"
        self.engines = self.path / "engines"
        self.own_log = self.path / "dicelab.log"
        self.cost_report = self.path / "cost.json"
        self._lock_file = self.path / "lock"

    def make(self) -> None:
        """Create the directory, closed to other users: it holds names, sessions and all traffic.

        Raises:
            LabError: when it cannot be created, belongs to another user, or is open to others and not a run dir.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.stat()
            if status.st_uid != os.geteuid():
                raise LabError(f"run dir {self.path} belongs to another user; choose another with --run-dir")
            if stat.S_IMODE(status.st_mode) & 0o077:
                self._close_to_others()
            for directory in (self.logs, self.traces):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> LabError:
        if error.errno in FULL:
            return LabError(f"no space left on device in {self.path}")
        return LabError(f"run dir {self.path}: {error.strerror}")

    def _close_to_others(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        if names and not names.intersection(MARKS):  # perhaps the user's home: do not change its mode
            raise LabError(
                f"run dir {self.path} holds other files and is open to other users; choose another with --run-dir"
            )
        self.path.chmod(0o700)

    def claim(self) -> None:
        """Create the directory, and lock it for this process.

        Raises:
            LabError: as :meth:`make`, or when another lab runs in it.
        """
        self.make()
        try:
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._error(error) from None
        for attempt in range(CLAIM_ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # a lab holds the lock, or for a moment a command that calls owner()
                time.sleep(0.02 * attempt)
        else:
            os.close(lock)
            raise LabError(f"run dir {self.path} is in use by process {self.owner()}; dicelab down stops it") from None
        self._close_files_to_others()
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._clean_up()
        self.cost_report.unlink(missing_ok=True)  # it is from an earlier lab, perhaps with another stage or settings

    def clean_up(self) -> None:
        """Remove what a lab that was killed has left; does nothing while a lab runs here."""
        with suppress(OSError):
            lock = os.open(self._lock_file, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._clean_up()
            finally:
                os.close(lock)

    def _clean_up(self) -> None:
        remove_left_behind((self.state() or {}).get("directories", []))
        self.state_file.unlink(missing_ok=True)

    def _close_files_to_others(self) -> None:
        """Close to other users the files that an earlier version let them read; no link is followed."""
        for parent, directories, files in os.walk(self.path):
            for name in (*directories, *files):
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
                        path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)

    def release(self) -> None:
        """Remove the state file, by which commands find the lab. The end of the process releases the lock."""
        self.state_file.unlink(missing_ok=True)

    def owner(self) -> int | None:
        """The process id of the lab that runs here, or ``None``.

        Raises:
            LabError: when this user cannot find out.
        """
        try:
            lock = os.open(self._lock_file, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            content = os.read(lock, 32)
            return int(content) if content.isdigit() else None
        finally:
            os.close(lock)

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state file atomically."""
        with self.new_state(state):
            pass

    @contextmanager
    def new_state(self, state: dict[str, Any]) -> Iterator[None]:
        """Write a state, which replaces the state file at the end of the block."""
        with self._replacing(self.state_file, state):
            yield

    def write_cost_report(self, report: Mapping[str, Any]) -> None:
        """Replace the last report of ``dicelab cost`` atomically; the page shows it.

        Raises:
            LabError: when it cannot be written.
        """
        try:
            with self._replacing(self.cost_report, report):
                pass
        except OSError as error:
            raise self._error(error) from None

    @staticmethod
    @contextmanager
    def _replacing(path: Path, document: Mapping[str, Any]) -> Iterator[None]:
        temporary = path.with_suffix(".tmp")
        try:
            # The state may hold a database password.
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(document, file, indent=2)
            yield
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def state(self) -> dict[str, Any] | None:
        """The state of the running lab; ``None`` until the lab is ready."""
        try:
            state = json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None


class RotatingFile:
    """A file of lines, rotated by size.

    The handler of :mod:`logging` writes one line a call, with a system call for the file's size each time. At ten
    thousand lines a second that costs a fifth of a core. This class writes any number of lines a call.
    """

    _open: ClassVar[dict[Path, RotatingFile]] = {}

    def __init__(self, path: Path, max_bytes: int = LOG_BYTES, backups: int = LOG_BACKUPS) -> None:
        self._users = 0
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._open_file()

    @classmethod
    def shared(cls, path: Path) -> RotatingFile:
        """The open file at this path, which all users of the path share; each of them closes it once."""
        file = cls._open.get(path)
        if file is None:
            file = cls._open[path] = cls(path)
        file._users += 1
        return file

    def write(self, lines: bytes) -> None:
        """Append whole lines, all or none of them; raises ``OSError``."""
        if self._file.closed:  # the last rotation failed
            self._open_file()
        if self._size and self._size + len(lines) > self._max_bytes:
            self._rotate()
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if len(rest) < len(lines):
                self._file.truncate(self._size)
            raise
        self._size += len(lines)

    def close(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self._open.pop(self._path, None)
            self._file.close()

    def _open_file(self) -> None:
        self._file = open(self._path, "ab", buffering=0)
        self._size = self._file.tell()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._backups - 1, 0, -1):
            old = self._path.with_name(f"{self._path.name}.{number}")
            if old.exists():
                old.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._open_file()
