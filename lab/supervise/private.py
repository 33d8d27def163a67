"""Directories that no other user can enter."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Bytes of a Unix socket's path: 108 on Linux and 104 elsewhere, of which the last one is zero.
MAX_SOCKET = 103
PREFIX = "dicelab-"

_made: list[Path] = []


def private_directory(shared: bool = False, inner: str = "/.s.PGSQL.5432") -> Path:
    """Make a directory with mode 0700, an unguessable name and a path short enough for a socket in it.

    The caller removes it.

    Args:
        shared: whether the directory will be given to another user, who must be able to reach it.
        inner: the longest path of a socket in it, relative to the directory.
    """
    base = Path(tempfile.gettempdir())
    reachable = all(part.stat().st_mode & 0o001 for part in (base, *base.parents))
    if len(os.fsencode(base)) > MAX_SOCKET - len(f"/{PREFIX}12345678{inner}") or (shared and not reachable):
        base = Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    _made.append(directory)
    return directory


def private_directories() -> list[Path]:
    """Those that this process has made and that still exist."""
    _made[:] = [directory for directory in _made if directory.exists()]
    return list(_made)


def remove_left_behind(directories: Iterable[str]) -> None:
    """Remove private directories of a process that was killed; leaves out any other directory."""
    for directory in map(Path, directories):
        with suppress(OSError):
            status = directory.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if ours and directory.name.startswith(PREFIX):
                shutil.rmtree(directory, ignore_errors=True)
