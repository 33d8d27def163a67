"""A signal ends a game, and the game removes its fault before the command ends."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from lab.client import Lab
from lab.mystery import command
from lab.mystery.game import Game
from lab.mystery.plan import Plan, draw
from lab.mystery.situations import Facets
from lab.supervise.rundir import RunDir

PLAN = draw(1, 2, Facets(6))


def lab(run_dir: Path) -> Lab:
    return Lab(RunDir(run_dir), "http://127.0.0.1:1", state={"stage": 6, "pid": os.getpid()})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_game_in_an_orderly_way(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    async def play(lab: Lab, plan: Plan, player: Any) -> None:
        try:
            happened.append("broken")
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            happened.append("put back")

    async def player(game: Game) -> None:
        raise AssertionError

    monkeypatch.setattr(command, "play", play)
    assert await command.until_stopped(lab(tmp_path), PLAN, player) is None
    assert happened == ["broken", "put back"]


async def test_a_part_of_the_lab_that_goes_down_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(lab: Lab, plan: Plan, player: Any) -> None:
        await lab.fetch(lab.front)  # nothing listens there

    monkeypatch.setattr(command, "play", play)
    with pytest.raises(LabError, match="a part of the lab went away in between"):
        await command.until_stopped(lab(tmp_path), PLAN, None)
