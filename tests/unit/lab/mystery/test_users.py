from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from lab import LabError
from lab.load.users import Traffic
from lab.mystery.users import Request, Users, indicators

BEGAN, ONSET, ENDED = 1000.0, 1040.0, 1080.0
FAIR = {"fair": (1, 2, 3, 4, 5, 6)}


def found(failed: float = 0.0, slower: float = 1.0, faces: Counter[int] | None = None) -> dict[str, Any]:
    chance = random.Random(3)
    requests = []
    for number in range(800):
        at = BEGAN + number / 10
        during = at >= ONSET + 2
        seconds = chance.uniform(0.05, 1.0) * (slower if during else 1.0)
        requests.append(Request(at + seconds, seconds, during and chance.random() < failed, "f" * 32))
    even = Counter(dict.fromkeys(range(1, 7), 100))
    return indicators(requests, BEGAN, ONSET, ENDED, {"fair": faces or even}, FAIR)


def test_an_ordinary_run_changes_no_indicator() -> None:
    one = found()
    assert not one["moved"]
    assert one["noticed_seconds"] is None
    assert one["before"]["requests"] > 300


def test_failures_and_latency_and_faces_are_what_users_notice() -> None:
    for moved in (found(failed=0.5), found(slower=4.0)):
        assert moved["moved"]
        assert 0 < moved["noticed_seconds"] < 12
    loaded = found(faces=Counter({1: 300, 2: 60, 3: 60, 4: 60, 5: 60, 6: 60}))
    assert loaded["moved"]
    assert loaded["faces_wrong"] == ["fair"]


def test_silence_is_noticed_too() -> None:
    requests = [Request(BEGAN + number, 0.1, False, "") for number in range(40)]
    assert indicators(requests, BEGAN, ONSET, ENDED, {}, {})["moved"]


async def test_an_error_of_the_users_ends_the_game(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lab:
        front = "http://127.0.0.1:1"

        async def fetch_capabilities(self) -> Any:
            return SimpleNamespace(max_times=0, sign_in=False)

    async def closed(*_: Any, **__: Any) -> None:
        raise ValueError("a defect")

    lab: Any = Lab()
    client: Any = None
    monkeypatch.setattr(Traffic, "closed", closed)
    users = Users(lab, client, seed=1)
    await users.spike(1, 1.0)
    with pytest.raises(LabError, match="the traffic of the users has ended: a defect"):
        await asyncio.wait_for(users.watch(), 10)
    await users.stop()
