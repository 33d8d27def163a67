from __future__ import annotations

import pytest

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.mystery import evidence
from lab.mystery.answer import BadAnswer
from lab.mystery.evidence import LATE, anomaly, check_query, separates, windows
from lab.mystery.situations import FRONTEND_ROLLER, ROLLER_DIE_SERVICE
from tests.unit.lab.mystery.cases import BEGAN, ENDED, ONSET, Roll, case, trace_at, truth

ANYWHERE = truth(ROLLER, "down")


def test_an_ordinary_trace_shows_nothing() -> None:
    made = case()
    for seconds in (1, 5, 20):
        assert anomaly(made, ANYWHERE, trace_at(seconds)) == set()


def test_a_trace_from_before_the_fault_shows_nothing() -> None:
    def slow(roll: Roll) -> None:
        roll.network[ROLLER] = 0.9

    assert anomaly(case(slow), ANYWHERE, trace_at(-5)) == set()
    assert anomaly(case(slow), ANYWHERE, "f" * 32) == set()


@pytest.mark.parametrize(
    ("caller", "found"),
    [
        (FRONTEND, {FRONTEND_ROLLER, ROLLER}),
        (ROLLER, {ROLLER_DIE_SERVICE, DIE_SERVICE}),
        (DIE_SERVICE, {"die-service->postgres", "postgres"}),
    ],
)
def test_a_slow_link_is_found_at_the_deepest_long_span(caller: str, found: set[str]) -> None:
    def slow(roll: Roll) -> None:
        roll.network[caller] = 0.9

    assert anomaly(case(slow), ANYWHERE, trace_at(3)) == found


def test_a_long_wait_is_found_at_its_service() -> None:
    def slow(roll: Roll) -> None:
        roll.wait = 2.0

    assert anomaly(case(slow), ANYWHERE, trace_at(3)) == {ROLLER}


def test_a_failed_call_is_found_at_its_destination() -> None:
    def down(roll: Roll) -> None:
        roll.failed, roll.status = ROLLER, 503

    assert anomaly(case(down), ANYWHERE, trace_at(3)) == {ROLLER_DIE_SERVICE, DIE_SERVICE}


def test_more_calls_than_ever_are_found_at_the_caller() -> None:
    def storm(roll: Roll) -> None:
        roll.attempts = 4

    assert anomaly(case(storm), ANYWHERE, trace_at(3)) == {ROLLER}


def test_a_trace_that_begins_in_the_middle_lost_its_context_on_the_link() -> None:
    def lost(roll: Roll) -> None:
        roll.unlinked = ROLLER

    made = case(lost)
    assert FRONTEND_ROLLER in anomaly(made, ANYWHERE, trace_at(3))
    below = f"{int(trace_at(3), 16) + 2**64:032x}"
    assert anomaly(made, ANYWHERE, below) == {FRONTEND_ROLLER}


def test_missing_spans_are_found_at_their_service() -> None:
    def unwritten(roll: Roll) -> None:
        roll.unseen = {ROLLER}

    assert anomaly(case(unwritten), ANYWHERE, trace_at(3)) == {ROLLER}


def test_lines_without_spans_are_a_trace_that_was_not_recorded() -> None:
    def unsampled(roll: Roll) -> None:
        roll.unseen = {FRONTEND, ROLLER, DIE_SERVICE}

    assert FRONTEND in anomaly(case(unsampled), truth(FRONTEND, "sampling"), trace_at(3))


def test_a_loaded_die_is_found_by_its_face() -> None:
    def loaded(roll: Roll) -> None:
        roll.face = 6

    right = truth(ROLLER, "wrong-weights", loaded=("fair", 6))
    assert anomaly(case(loaded), right, trace_at(3)) == {ROLLER}
    assert anomaly(case(loaded), ANYWHERE, trace_at(3)) == set()


def test_failures_that_were_common_before_are_ordinary() -> None:
    made = case()
    for export in made.exports[::9]:
        span = export["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        span["status"] = {"code": 2}
    assert all(anomaly(made, ANYWHERE, trace_at(seconds / 10)) == set() for seconds in range(10, 100))


def test_a_failure_that_happened_once_before_is_not_ordinary() -> None:
    def down(roll: Roll) -> None:
        roll.failed, roll.status = ROLLER, 503

    made = case(down, rate=10)
    for export in made.exports:
        span = export["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        if span["traceId"] == f"{1:032x}" and span["name"] == "GET":
            span["status"] = {"code": 2}
            span["attributes"][0] = {"key": "http.response.status_code", "value": {"intValue": "503"}}
    assert anomaly(made, ANYWHERE, trace_at(3, rate=10)) == {ROLLER_DIE_SERVICE, DIE_SERVICE}


# --- queries ---


def slow(roll: Roll) -> None:
    roll.network[ROLLER] = 0.9


def test_a_query_separates_if_every_window_of_the_fault_differs() -> None:
    right = truth(ROLLER_DIE_SERVICE, "slow-network")
    assert separates(case(slow), right, "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE name = 'GET'")
    assert not separates(case(), right, "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE name = 'GET'")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "SELECT epoch(max(start)) FROM spans",  # windows are shifted to the same time
        "SELECT epoch(min(timestamp)) FROM lines",
        "SELECT NULL",
        "SELECT max(start_ns) FROM spans",
    ],
)
def test_a_query_that_depends_on_the_time_separates_nothing(query: str) -> None:
    assert not separates(case(slow), truth(ROLLER, "down"), query)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", "Parser Error"),
        ("SELECT * FROM spans", "one row with one number is expected"),
        ("SELECT 'a'", "a number is expected"),
        ("SELECT nothing FROM spans", "Binder Error"),
        ("DROP TABLE spans", "can only be read"),
    ],
)
def test_a_query_that_gives_no_number_is_refused_in_one_line(query: str, message: str) -> None:
    text = query.replace("* FROM spans", "unnest([1, 2])")
    with pytest.raises(BadAnswer, match=message) as caught:
        check_query(text)
    assert "\n" not in str(caught.value)


def test_windows_have_one_length_and_do_not_touch_the_onset() -> None:
    before, during = windows(BEGAN, ONSET, ENDED)
    lengths = {round(end - start, 6) for start, end in (*before, *during)}
    assert lengths == {round((ENDED - LATE - ONSET) / 3, 6)}
    assert before[-1][1] < ONSET <= during[0][0]
    assert during[-1][1] == ENDED - LATE
    assert {round(end - start, 6) for start, end in windows(BEGAN, ONSET, ENDED + 60)[1]} == {12.0}
    assert windows(BEGAN, BEGAN, ENDED) == ([], [])


def test_own_time_is_what_no_child_covers() -> None:
    spans = case().spans
    (outer,) = [span for span in spans if span.trace_id == trace_at(1) and not span.parent_id]
    children = [span for span in spans if span.parent_id == outer.span_id]
    assert evidence.own_time(outer, children) == pytest.approx(0.004, abs=1e-6)
    assert evidence.own_time(outer, [*children, *children]) == pytest.approx(0.004, abs=1e-6)
