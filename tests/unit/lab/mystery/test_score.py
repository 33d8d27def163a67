from __future__ import annotations

from dataclasses import replace

import pytest

from lab.client import DIE_SERVICE, ROLLER
from lab.mystery.answer import Answer, BadAnswer
from lab.mystery.score import score
from lab.mystery.situations import NOTHING, ROLLER_DIE_SERVICE
from lab.mystery.truth import Truth
from tests.unit.lab.mystery.cases import ENDED, ONSET, Roll, case, trace_at, truth


def slow(roll: Roll) -> None:
    roll.network[ROLLER] = 0.9


CASE = case(slow)
TRUTH = truth(ROLLER_DIE_SERVICE, "slow-network")
RIGHT = Answer(
    (ROLLER_DIE_SERVICE,),
    ("slow-network",),
    ONSET + 2,
    "everyone",
    trace_at(4),
    "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE name = 'GET'",
)


def test_everything_right_is_a_hundred() -> None:
    found = score(CASE, TRUTH, RIGHT)
    assert (found.component, found.mechanism, found.onset, found.trace + found.query) == (40, 25, 15, 20)
    assert (found.total, found.wrong, found.impact) == (100, 0, True)


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({"components": ()}, 90 - 40 - 10),  # evidence of nothing
        ({"components": (DIE_SERVICE,)}, 90 - 40 - 10 - 10),
        ({"components": (DIE_SERVICE, ROLLER_DIE_SERVICE)}, 90 - 10),
        ({"mechanisms": ()}, 90 - 25),
        ({"mechanisms": ("down",)}, 90 - 25 - 10),
        ({"mechanisms": ("down", "lock", "slow-network")}, 90 - 20),
        ({"since": None}, 90 - 15),
        ({"since": ONSET - 5}, 90),
        ({"since": ONSET + 5.1}, 90 - 15),
        ({"impact": "nobody"}, 90),
        ({"impact": ""}, 90),
        ({"trace": ""}, 90 - 10),
        ({"trace": trace_at(-4)}, 90 - 10),
        ({"query": RIGHT.query}, 100),
        ({"query": RIGHT.query, "components": ()}, 90 - 40 - 10),
        ({"query": "SELECT 1"}, 90),
    ],
)
def test_each_part_counts_for_itself(change: dict[str, object], points: float) -> None:
    # A query takes longest to score: it is left out unless it is tested.
    assert score(CASE, TRUTH, replace(RIGHT, **{"query": "", **change})).total == points  # type: ignore[arg-type]


def test_a_score_is_never_below_zero() -> None:
    assert score(CASE, TRUTH, Answer((DIE_SERVICE, ROLLER, "postgres"), ("down", "lock"))).total == 0
    assert score(CASE, TRUTH, Answer()).total == 0


def test_each_of_two_faults_counts_half() -> None:
    both = replace(TRUTH, components=(ROLLER_DIE_SERVICE, ROLLER), mechanisms=("slow-network", "wrong-weights"))
    one = replace(RIGHT, query="")
    assert score(CASE, both, one).total == 90 - 20 - 12.5
    everything = replace(one, components=both.components, mechanisms=both.mechanisms)
    assert score(CASE, both, everything).total == 90
    assert score(CASE, TRUTH, everything).total == 90 - 20


def test_if_nothing_is_wrong_the_right_answer_is_nothing() -> None:
    nothing = Truth(NOTHING, (NOTHING,), (NOTHING,), "nobody", None, ENDED, unseen=True)
    ordinary = case()
    answer = Answer((NOTHING,), (NOTHING,), impact="nobody")
    assert score(ordinary, nothing, answer).total == 100
    assert score(ordinary, nothing, replace(answer, since=ONSET)).total == 85
    assert score(ordinary, nothing, replace(answer, trace=trace_at(1), query="SELECT 1")).total == 80
    assert score(ordinary, nothing, RIGHT).total == 0
    assert score(CASE, TRUTH, answer).total == 0


def test_the_same_answer_always_has_the_same_score() -> None:
    assert len({str(score(CASE, TRUTH, RIGHT).document()) for _ in range(2)}) == 1


def test_a_query_that_cannot_be_run_costs_nothing_because_it_is_not_scored() -> None:
    with pytest.raises(BadAnswer, match="Parser Error"):
        score(CASE, TRUTH, replace(RIGHT, query="SELEC"))


def test_notes_report_the_right_answers() -> None:
    notes = " ".join(score(CASE, TRUTH, Answer((DIE_SERVICE,), ("down",))).notes)
    assert f"right is {ROLLER_DIE_SERVICE}" in notes
    assert "right is slow-network" in notes
