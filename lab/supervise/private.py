"""Directories that no other user can enter."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Bytes of the directory's path. The path of a Unix socket may have 108 bytes on Linux and 104 elsewhere, of which the
# longest name of a socket takes 20.
MAX_PATH = 80


def private_directory(shared: bool = False) -> Path:
    """Make a directory with mode 0700, an unguessable name and a path short enough for a socket in it.

    The caller removes it.

    Args:
        shared: whether the directory will be given to another user, who must be able to reach it.
    """
    base = Path(tempfile.gettempdir())
    reachable = all(part.stat().st_mode & 0o001 for part in (base, *base.parents))
    if len(os.fsencode(base)) > MAX_PATH - len("/dicelab-12345678") or (shared and not reachable):
        base = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="dicelab-", dir=base))
