"""How situations are injected: silently, so that they differ only in their symptoms."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lab.mystery.plan import STEADY, UNCERTAIN
from lab.mystery.player import EARLIEST
from lab.mystery.situations import DELAYS, PAIRS, SITUATIONS, Facets
from lab.paths import DOCS

DOCUMENT = (DOCS / "mystery.md").read_text()
FACETS = Facets(6, workers=2, engines=("otel-collector", "tempo", "loki", "alloy", "prometheus"))


class Recorder:
    """A target that records the requested faults."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: Any) -> None:
            self.asked.append((name, arguments))

        return ask


@pytest.mark.parametrize("name", SITUATIONS)
async def test_a_fault_needs_no_restart_and_no_variable(name: str) -> None:
    situation = SITUATIONS[name]
    for seed in range(10):
        target: Any = Recorder()
        parameters = situation.draw(random.Random(seed), FACETS, 0.6)
        await situation.inject(target, parameters, FACETS)
        kinds = {kind for kind, _ in target.asked}
        assert kinds <= {"switch", "slow", "stop", "kill", "lock"}, kinds
        assert bool(kinds) == (name != "nothing")
        assert situation.where(parameters) in FACETS.components
        assert situation.story.format_map(parameters)
        for kind, arguments in target.asked:
            if kind == "slow":
                assert arguments[1] >= DELAYS[arguments[0]] + 0.3


async def test_every_worker_has_the_defect_except_in_slow_worker() -> None:
    target: Any = Recorder()
    await SITUATIONS["blocked-loop"].inject(target, {}, FACETS)
    assert target.asked == [("switch", ({"dice-roller": {"blocking": True}, "dice-roller-2": {"blocking": True}},))]
    target = Recorder()
    await SITUATIONS["slow-worker"].inject(target, {"process": "dice-roller-2", "seconds": 2.0}, FACETS)
    assert target.asked == [("switch", ({"dice-roller-2": {"slow": 2.0}},))]


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_situation_is_documented(name: str) -> None:
    one = SITUATIONS[name]
    (row,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} | ") and line.count("|") == 6]
    _, component, mechanism, users, _ = (cell.strip() for cell in row.strip("|").split("|"))
    assert component == one.component or "{" in one.component
    assert mechanism == one.mechanism
    assert users == ("telemetry-only" if one.telemetry_only else one.impact)


def test_pairs_and_times_are_documented() -> None:
    text = " ".join(DOCUMENT.split())
    for pair in PAIRS:
        assert " and ".join(pair) in text
    assert f"Between {STEADY:.0f} and {STEADY + UNCERTAIN:.0f} seconds after the beginning" in text
    assert f"From {EARLIEST:.0f} seconds after the beginning" in text
