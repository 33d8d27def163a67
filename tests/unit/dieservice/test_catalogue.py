from __future__ import annotations

import json
from pathlib import Path

import pytest

from dieservice.catalogue import read_file
from web.settings import SettingsError


@pytest.mark.parametrize("identifier", ["", "x" * 65, "tab\t", "ev\u202eil", "\u200efair", "line\u2028break", "\x9b1m"])
def test_a_file_with_an_invalid_identifier_is_refused(tmp_path: Path, identifier: str) -> None:
    path = tmp_path / "dice.json"
    path.write_text(json.dumps([{"identifier": identifier, "faces": [1], "error_rate": 0}]))
    with pytest.raises(SettingsError, match="identifier"):
        read_file(path)


def test_an_identifier_may_be_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "dice.json"
    path.write_text(json.dumps([{"identifier": name, "faces": [1], "error_rate": 0} for name in ("מזל", "würfel 1")]))
    assert [die.identifier for die in read_file(path)] == ["מזל", "würfel 1"]
