from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_temporary = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Give all processes of a run one directory for temporary files, because killed processes do not remove theirs.

    ``tmp_path`` stays outside: pytest keeps the files of failed tests. Worker processes inherit both variables.
    """
    if hasattr(config, "workerinput"):
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix="dicelab-tests-"))
    directory.chmod(0o711)  # as root, a lab runs its database as another user, who must reach the socket's directory
    config.stash[_temporary] = directory
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _temporary in config.stash:
        shutil.rmtree(config.stash[_temporary], ignore_errors=True)
