"""Directories that no other user can enter."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# The path of a Unix socket holds 108 bytes on Linux and 104 elsewhere; the longest name below it takes 20.
LONGEST = 80


def private_directory() -> Path:
    """Make a directory with mode 0700, an unguessable name and a path short enough for a socket in it.

    The caller removes it.
    """
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST - len("/dicelab-12345678"):
        return Path(tempfile.mkdtemp(prefix="dicelab-", dir="/tmp"))
    return Path(tempfile.mkdtemp(prefix="dicelab-"))
