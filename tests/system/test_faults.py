"""Faults through the socket that experiments use: changed settings, proxies and frozen services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import LabError
from lab.chaos.faults import Faults
from lab.client import FRONTEND, ROLLER
from tests.support.labs import Lab, get, wait_for


def environ(lab: Lab, service: str) -> set[str]:
    state = json.loads((lab.run_dir / "state.json").read_text())
    pid = next(entry["pid"] for entry in state["services"] if entry["name"] == service)
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))
    except OSError:  # it is being restarted
        return set()


async def test_settings_last_as_long_as_the_connection(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(2)
    async with Faults(lab.state["faults"]) as faults:
        await faults.ask(restart={ROLLER: {"BLOCKING_WAIT": "true"}, FRONTEND: {}})
        await asyncio.to_thread(wait_for, lambda: "BLOCKING_WAIT=true" in environ(lab, ROLLER))
        # A proxy adds to what was set before.
        await faults.ask(slow=ROLLER, seconds=0)
        await faults.ask(restart={ROLLER: {"OTEL_PROPAGATORS": "none"}})
        await asyncio.to_thread(
            wait_for, lambda: {"BLOCKING_WAIT=true", "OTEL_PROPAGATORS=none"} <= environ(lab, ROLLER)
        )
        for request, message in (
            ({"restart": {ROLLER: {"LD_PRELOAD": "x"}}}, "LD_PRELOAD cannot be set in a running lab"),
            ({"restart": {"nobody": {}}}, "this lab runs no nobody"),
            ({"restart": [ROLLER]}, "no such request"),
        ):
            with pytest.raises(LabError, match=message):
                await faults.ask(**request)
    await asyncio.to_thread(wait_for, lambda: environ(lab, ROLLER) and "BLOCKING_WAIT=true" not in environ(lab, ROLLER))
    await asyncio.to_thread(wait_for, lambda: f"DICE_ROLLER_URL={lab.url(ROLLER)}" in environ(lab, FRONTEND))
    await asyncio.to_thread(wait_for, lambda: rolls(lab))


async def test_a_frozen_service_continues_when_the_experiment_ends(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1)

    def frozen() -> bool:
        return Path(f"/proc/{lab.pid(ROLLER)}/stat").read_text().split()[2] == "T"

    async with Faults(lab.state["faults"]) as faults:
        await faults.ask(freeze=ROLLER)
        await asyncio.to_thread(wait_for, frozen)
        with pytest.raises(LabError, match="this lab runs no nobody"):
            await faults.ask(freeze="nobody")
        with pytest.raises(LabError, match="is not a mount point"):
            await faults.ask(fill=ROLLER)
    assert not await asyncio.to_thread(frozen)
    assert await asyncio.to_thread(rolls, lab)


async def test_one_experiment_can_follow_another_at_once(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1)
    for _ in range(20):
        async with Faults(lab.state["faults"]) as faults:
            await faults.ask(end=True)
    async with Faults(lab.state["faults"]) as faults:
        await faults.ask(restart={ROLLER: {"BLOCKING_WAIT": "true"}})
    async with Faults(lab.state["faults"]) as faults:  # the first one has been undone by now
        await faults.ask(restart={ROLLER: {}})
    await asyncio.to_thread(wait_for, lambda: rolls(lab))
    assert "BLOCKING_WAIT=true" not in environ(lab, ROLLER)


def rolls(lab: Lab) -> bool:
    try:
        return get(f"{lab.front}/roll?die=fair").status == 200
    except OSError:
        return False
