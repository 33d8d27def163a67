"""How right answers are computed from raw spans, and how results of queries are compared."""

from __future__ import annotations

import random

import pytest

from lab.learn.lesson import complete
from lab.learn.promql import Recording
from lab.learn.queries import alike, compare, shown
from lab.learn.stage2 import own_time
from lab.learn.stage4 import peak
from lab.signals import Span

INTERNAL, SERVER, CLIENT = 1, 2, 3


def span(service: str, identifier: str, parent: str, start: int, end: int, kind: int = SERVER) -> Span:
    attributes = {"http.request.method": "GET"} if kind == CLIENT else {}
    return Span(service, "name", "t", identifier, parent, kind, start, end, 0, attributes, [])


ROLL = [
    span("frontend", "a", "outside", 0, 100),
    span("frontend", "b", "a", 5, 95, CLIENT),
    span("dice-roller", "c", "b", 10, 90),
    span("dice-roller", "d", "c", 20, 50, CLIENT),
    span("die-service", "e", "d", 25, 45),
]


def test_a_services_own_time_excludes_its_waits() -> None:
    assert own_time(ROLL, "dice-roller") == 80 - 30
    assert own_time(ROLL, "die-service") == 20
    assert own_time(ROLL, "frontend") == 100 - 90


def test_the_peak_is_the_most_spans_at_once() -> None:
    def of(*intervals: tuple[int, int]) -> int:
        return peak([span("s", str(start), "", start, end) for start, end in intervals])

    assert of((0, 10), (1, 5), (2, 3)) == 3
    assert of((0, 5), (5, 10)) == 1  # one ends when the other starts
    assert of() == 0


def test_a_trace_is_complete_once_nothing_is_missing() -> None:
    everything = {"frontend", "dice-roller", "die-service"}
    assert complete(ROLL, everything, {"outside"})
    for missing in ROLL:
        assert not complete([one for one in ROLL if one is not missing], everything, {"outside"})
    assert not complete(ROLL, everything, {""})  # the root has a parent that nobody sent
    assert not complete([*ROLL, span("frontend", "z", "elsewhere", 0, 1)], everything, {"outside", "elsewhere"})


WORLDS = [{"name": "one", "expected": {"fair": 1.0, "risky": 0.9}, "tolerance": 0.05}]


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ({"fair": 1.0, "risky": 0.86}, True),
        ({"fair": 1.0, "risky": 0.84}, False),
        ({"fair": 1.0}, False),
        ({"fair": 1.0, "risky": 0.9, "extreme": 0.5}, False),
        ({}, False),
    ],
)
def test_a_result_has_the_expected_rows_within_the_tolerance(rows: dict[str, float], right: bool) -> None:
    verdict = compare([rows], WORLDS)
    assert verdict.right is right
    assert right or shown(rows) in verdict.text


def test_results_are_alike_if_they_agree_in_every_world() -> None:
    assert alike([{"a": 1.0}, {}], [{"a": 1.0 + 1e-9}, {}])
    assert not alike([{"a": 1.0}, {"a": 2.0}], [{"a": 1.0}, {"a": 3.0}])
    assert not alike([{"a": 1.0}], [{"b": 1.0}])


def test_a_moved_run_has_other_counters_and_a_job_that_always_fails() -> None:
    recording = Recording()
    for at in (10.0, 10.5):
        recording.add("x_sum", {}, at, at)
        recording.add("x_count", {}, 1.0, at)
        recording.add("gauge", {}, 5.0, at)
    lines = recording.moved(-10, random.Random(1)).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line.endswith(" 0.000")}
    assert values["gauge{}"] == 5.0
    assert values["x_sum{}"] - 10.0 == values["x_count{}"] - 1.0 >= 100
    assert values['up{instance="127.0.0.1:2",job="shop"}'] == 0
