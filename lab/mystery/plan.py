"""The plan of a game, which its seed determines, and the commitment to it, which is published before the game."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import LabError
from lab.client import DIE_SERVICE, ROLLER
from lab.mystery.situations import EVERYONE, NOBODY, NOTHING, PAIRS, SITUATIONS, SOME, Facets, Fault

LEVELS = (1, 2, 3)
FIRST_STAGE = 3
# Seconds of ordinary traffic before the fault: the minimum, and the maximum of a random time in addition.
STEADY, UNCERTAIN = 40.0, 40.0
WITHIN = STEADY + UNCERTAIN
STRENGTHS = {1: 1.0, 2: 0.8, 3: 0.6}
RESTART, SPIKE, DEPLOYMENT = "restart", "load-spike", "deploy-marker"
DECOYS = {
    RESTART: "The {service} was restarted gracefully {after:.0f} s after the beginning.",
    SPIKE: "{users} more users came for {seconds} s, {after:.0f} s after the beginning.",
    DEPLOYMENT: "A deployment of the {service} was logged {after:.0f} s after the beginning; nothing was deployed.",
}
DECOY_COUNT = {1: 0, 2: 1, 3: 2}
# Minimum seconds between a decoy and the beginning of the game, and between a decoy and the fault.
FROM_BEGINNING, FROM_FAULT = 8.0, 7.0
SPIKE_USERS, SPIKE_SECONDS = 12, 5
# The share of games with two faults, at level 3, and of games without a fault, at levels 2 and 3.
PAIR_SHARE, NOTHING_SHARE = 0.3, 0.08
# Published for teaching and comparing. The game of a seed depends on the lab, see docs/mystery.md.
PUBLIC_SEEDS: tuple[int, ...] = tuple(range(101, 141))


@dataclass(frozen=True)
class Decoy:
    """An event that has nothing to do with the fault.

    Attributes:
        after: seconds from the beginning.
    """

    name: str
    after: float
    service: str

    @property
    def story(self) -> str:
        return DECOYS[self.name].format(
            service=self.service, after=self.after, users=SPIKE_USERS, seconds=SPIKE_SECONDS
        )


@dataclass(frozen=True)
class Plan:
    """What happens in a game.

    Attributes:
        onset: seconds from the beginning to the fault.
    """

    seed: int
    level: int
    facets: Facets
    faults: tuple[Fault, ...]
    decoys: tuple[Decoy, ...]
    onset: float

    @property
    def name(self) -> str:
        return "+".join(fault.situation.name for fault in self.faults)

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fault.component for fault in self.faults))

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fault.mechanism for fault in self.faults))

    @property
    def impact(self) -> str:
        impacts = {fault.situation.impact for fault in self.faults}
        return next(impact for impact in (EVERYONE, SOME, NOBODY) if impact in impacts)

    @property
    def nothing(self) -> bool:
        return self.components == (NOTHING,)

    @property
    def telemetry_only(self) -> bool:
        return all(fault.situation.telemetry_only for fault in self.faults)

    def document(self) -> dict[str, Any]:
        """The plan as JSON, for which the commitment is computed."""
        return {
            "seed": self.seed,
            "level": self.level,
            "faults": [{"situation": fault.situation.name, "parameters": fault.parameters} for fault in self.faults],
            "decoys": [{"name": one.name, "after": one.after, "service": one.service} for one in self.decoys],
            "onset": self.onset,
        }

    def story(self) -> list[str]:
        """What happens, a sentence each."""
        return [*(fault.story for fault in self.faults), *(decoy.story for decoy in self.decoys)]


def possible(facets: Facets, level: int) -> list[str]:
    """The names of the situations that a game at this level can draw in a lab."""
    found = [name for name, one in SITUATIONS.items() if one.possible(facets)]
    return [name for name in found if level > 1 or not SITUATIONS[name].telemetry_only]


def draw(
    seed: int,
    level: int,
    facets: Facets,
    only: Sequence[str] = (),
    steady: float = STEADY,
    uncertain: float = UNCERTAIN,
) -> Plan:
    """The plan of a seed; the same for the same seed, level and lab.

    Args:
        only: the situations, instead of those that the seed would draw.
        steady, uncertain: seconds of ordinary traffic before the fault: the minimum, and the maximum in addition.

    Raises:
        LabError: when a game is not possible in this lab.
    """
    if facets.stage < FIRST_STAGE:
        raise LabError(
            f"a mystery needs stage {FIRST_STAGE} or later, and stage {facets.stage} runs: dicelab down, then"
            f" dicelab up --stage {FIRST_STAGE} or more"
        )
    chance = random.Random(f"{seed} {level}")
    names = list(only) or _names(chance, level, facets)
    for name in names:
        if not SITUATIONS[name].possible(facets):
            raise LabError(f"{name} is not possible in this lab")
    strength = STRENGTHS[level]
    faults = tuple(Fault(SITUATIONS[name], SITUATIONS[name].draw(chance, facets, strength)) for name in names)
    onset = round(steady + chance.uniform(0, uncertain), 1)
    return Plan(seed, level, facets, faults, _decoys(chance, level, faults, onset), onset)


def _names(chance: random.Random, level: int, facets: Facets) -> list[str]:
    kind = chance.random()
    names = possible(facets, level)
    pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
    if level == 3 and pairs and kind < PAIR_SHARE:
        return list(chance.choice(pairs))
    if level > 1 and kind > 1 - NOTHING_SHARE:
        return [NOTHING]
    return [chance.choice([name for name in names if name != NOTHING])]


def _decoys(chance: random.Random, level: int, faults: Sequence[Fault], onset: float) -> tuple[Decoy, ...]:
    guilty = " ".join(fault.component for fault in faults)
    innocent = [name for name in (ROLLER, DIE_SERVICE) if name not in guilty] or [ROLLER, DIE_SERVICE]
    drawn = chance.sample(sorted(DECOYS), DECOY_COUNT[level])
    first = min(FROM_BEGINNING, onset / 2)
    return tuple(
        Decoy(name, round(chance.uniform(first, max(first, onset - FROM_FAULT)), 1), service)
        for name in drawn
        for service in [chance.choice(innocent)]
    )


def commitment(nonce: str, document: Mapping[str, Any]) -> str:
    """The SHA-256 of a nonce and the plan's canonical JSON, which is shown before a game."""
    return hashlib.sha256(f"{nonce}\n{canonical(document)}".encode()).hexdigest()


def canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
