"""The history of the games in a run dir. A game is added when it is over, never while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import LabError
from lab.supervise.rundir import RunDir


class History:
    """One JSON object a game, in ``mystery/history.jsonl`` of the run dir."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = RunDir(run_dir).path / "mystery"
        self._file = self._directory / "history.jsonl"

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a game.

        Raises:
            LabError: when the file cannot be written.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with open(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise LabError(f"{self._file}: {error.strerror}") from None

    def read(self) -> list[dict[str, Any]]:
        """Every game, oldest first; lines that cannot be read are left out.

        Raises:
            LabError: when the file cannot be read.
        """
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"{self._file} cannot be read: {error}") from None
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
                found.append({**entry, "score": float(entry["score"]), "level": int(entry["level"])})
            except (ValueError, KeyError, TypeError):
                continue
        return found
