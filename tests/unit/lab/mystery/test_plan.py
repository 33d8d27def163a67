from __future__ import annotations

import hashlib
import json

import pytest

from lab import LabError
from lab.client import DIE_SERVICE, ROLLER
from lab.mystery.plan import (
    DECOY_COUNT,
    FROM_FAULT,
    PUBLIC_SEEDS,
    STEADY,
    UNCERTAIN,
    Plan,
    canonical,
    commitment,
    draw,
    possible,
)
from lab.mystery.situations import IMPACTS, MECHANISMS, NOTHING, PAIRS, SITUATIONS, Facets
from lab.supervise import engines

LABS = {
    "stage 3": Facets(3, postgres=False),
    "stage 6": Facets(6),
    "two workers": Facets(6, workers=2),
    "all engines": Facets(6, engines=tuple(engine.name for engine in engines.ENGINES)),
}


def test_there_are_at_least_sixteen_situations_without_any_engine() -> None:
    found = {*possible(LABS["stage 6"], 2), *possible(LABS["two workers"], 2)}
    assert len(found) + len(PAIRS[:1]) >= 16
    assert len(possible(LABS["stage 6"], 2)) >= 15


@pytest.mark.parametrize("facets", LABS.values(), ids=LABS)
def test_a_seed_always_draws_the_same(facets: Facets) -> None:
    for level in (1, 2, 3):
        for seed in PUBLIC_SEEDS:
            assert draw(seed, level, facets).document() == draw(seed, level, facets).document()


@pytest.mark.parametrize("facets", LABS.values(), ids=LABS)
def test_what_is_drawn_is_possible_and_can_be_named(facets: Facets) -> None:
    for level in (1, 2, 3):
        for seed in range(300):
            plan = draw(seed, level, facets)
            assert all(fault.situation.possible(facets) for fault in plan.faults)
            assert set(plan.components) <= set(facets.components)
            assert set(plan.mechanisms) <= set(MECHANISMS)
            assert plan.impact in IMPACTS
            assert STEADY <= plan.onset <= STEADY + UNCERTAIN
            assert len(plan.decoys) == DECOY_COUNT[level]
            assert all(8 <= decoy.after <= plan.onset - FROM_FAULT + 0.05 for decoy in plan.decoys)
            assert all("{" not in sentence for sentence in plan.story())
            json.dumps(plan.document())


def drawn(facets: Facets, level: int) -> list[Plan]:
    return [draw(seed, level, facets) for seed in range(600)]


@pytest.mark.parametrize("facets", LABS.values(), ids=LABS)
def test_every_situation_is_drawn_at_level_two(facets: Facets) -> None:
    assert {plan.name for plan in drawn(facets, 2)} == set(possible(facets, 2))


def test_levels_differ() -> None:
    one, two, three = (drawn(LABS["stage 6"], level) for level in (1, 2, 3))
    assert all(len(plan.faults) == 1 and not plan.telemetry_only for plan in one)
    assert any(plan.nothing for plan in two)
    assert all(len(plan.faults) == 1 for plan in two)
    assert any(len(plan.faults) == 2 for plan in three)
    assert all(len(set(plan.components)) == 2 for plan in three if len(plan.faults) == 2)


def test_a_decoy_is_not_where_the_fault_is() -> None:
    for plan in drawn(LABS["stage 6"], 3):
        if len(plan.faults) == 1:
            guilty = {name for name in (ROLLER, DIE_SERVICE) if name in plan.components[0]}
            if guilty != {ROLLER, DIE_SERVICE}:  # both are at the ends of the link between them
                assert not guilty & {decoy.service for decoy in plan.decoys}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_is_too_low_is_reported_in_one_line(stage: int) -> None:
    with pytest.raises(LabError, match=f"needs stage 3 or later, and stage {stage} runs") as caught:
        draw(1, 1, Facets(stage))
    assert "\n" not in str(caught.value)


def test_a_situation_that_the_lab_does_not_have_is_refused() -> None:
    with pytest.raises(LabError, match="not possible"):
        draw(1, 1, LABS["stage 3"], only=["database-down"])


def test_the_commitment_is_a_sha_256_of_nonce_and_plan() -> None:
    document = draw(7, 2, LABS["stage 6"]).document()
    expected = hashlib.sha256(b"abc\n" + canonical(document).encode()).hexdigest()
    assert commitment("abc", document) == expected
    assert commitment("abd", document) != expected
    assert commitment("abc", draw(8, 2, LABS["stage 6"]).document()) != expected
    assert commitment("abc", json.loads(canonical(document))) == expected


def test_forty_public_seeds() -> None:
    assert len(set(PUBLIC_SEEDS)) == 40


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations_are_complete(name: str) -> None:
    one = SITUATIONS[name]
    assert one.mechanism in MECHANISMS
    assert one.impact in IMPACTS
    assert (one.impact == "nobody") == one.telemetry_only
    assert one.story.endswith(".")
    assert (one.mechanism == NOTHING) == (one.name == NOTHING)


def test_both_situations_of_a_pair_exist() -> None:
    for pair in PAIRS:
        assert set(pair) <= set(SITUATIONS)
