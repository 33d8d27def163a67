"""The rolls that a browser keeps across a reload: the stored value may be anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend.rolls import HISTORY, History, Roll

ROLL = Roll(1767323045678, "fair", 200, 183.5, "0af7651916cd43dd8448eb211c80319c", (6, None), "")


def kept(**changes: Any) -> dict[str, Any]:
    history = History("alice")
    history.add(ROLL)
    stored: dict[str, Any] = json.loads(json.dumps(history.stored()))
    stored["rolls"][0] |= changes
    return stored


def restored(stored: object, owner: str = "alice") -> list[Roll]:
    history = History(owner)
    history.restore(stored)
    return list(history)


def test_stored_rolls_are_restored() -> None:
    assert restored(kept()) == [ROLL]


def test_rolls_of_another_user_are_not_restored() -> None:
    assert restored(kept(), "bob") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"at": "now"},
        {"at": -1},
        {"status": None},
        {"milliseconds": "fast"},
        {"faces": "6"},
        {"faces": [1] * 20_000},
        {"faces": [{"a": 1}]},
        {"trace_id": "<script>"},
        {"trace_id": 7},
    ],
)
def test_invalid_rolls_are_ignored(changes: dict[str, Any]) -> None:
    assert restored(kept(**changes)) == []


@pytest.mark.parametrize("stored", [None, [], "x", {"owner": "alice"}, {"owner": "alice", "rolls": {"a": 1}}])
def test_invalid_storage_is_ignored(stored: object) -> None:
    assert restored(stored) == []


def test_restored_history_is_bounded() -> None:
    stored = kept()
    stored["rolls"] *= 3 * HISTORY
    assert len(restored(stored)) == HISTORY
