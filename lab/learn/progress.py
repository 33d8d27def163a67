"""The learner's progress, kept in the run dir: it survives restarts of the lab and never leaves the machine."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import LabError
from lab.supervise.rundir import RunDir

VERSION = 1


class Progress:
    """Reads and writes the progress of a run dir."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = RunDir(run_dir)
        self.directory = self._run_dir.path / "learn"
        self._file = self.directory / "progress.json"
        self._lock = self.directory / "lock"

    @property
    def begun(self) -> bool:
        """Whether the run dir has had a learner; without one there is nothing to lock or to forget."""
        return self.directory.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other learners out while the block runs: the traffic of two attempts at once would spoil both.

        Raises:
            LabError: when another learner is at work, or the directory cannot be written.
        """
        self._run_dir.make()
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LabError(f"{self.directory}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(lock, 32).decode(errors="replace")
                raise LabError(
                    f"another learner is at work in {self._run_dir.path} (process {owner}); try again in a moment"
                ) from None
            try:
                os.truncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
            except OSError as error:
                raise LabError(f"{self._lock}: {error.strerror}") from None
            yield
        finally:
            os.close(lock)

    def read(self) -> dict[str, dict[str, Any]]:
        """The saved entry of each exercise that has been asked, by its number.

        Raises:
            LabError: when the file cannot be read.
        """
        try:
            document = json.loads(self._file.read_text())
            if document["version"] != VERSION:
                raise ValueError("it is of another version")
            exercises: dict[str, dict[str, Any]] = {str(key): dict(one) for key, one in document["exercises"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(
                f"{self._file} cannot be read ({error}); move it away, or begin again with dicelab learn reset"
            ) from None
        return exercises

    def write(self, exercises: dict[str, dict[str, Any]]) -> None:
        """Replace the file atomically.

        Raises:
            LabError: when it cannot be written.
        """
        temporary = self._file.with_suffix(".tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"version": VERSION, "exercises": exercises}, file, indent=1)
            temporary.replace(self._file)
        except OSError as error:
            raise LabError(f"{self._file}: {error.strerror}") from None

    def reset(self) -> None:
        """Delete all progress, even a file that cannot be read."""
        self._file.unlink(missing_ok=True)
        for path in self.directory.glob("*.samples"):
            path.unlink()
