"""How answers are read and compared."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lab.learn.forms import BadAnswer, Edges, Fields, Form, Hexadecimal, Items, Moment, Number, Text, Word

WHOLE = Number("a whole number", whole=True)
NEAR = Number("milliseconds", absolute=2.0, relative=0.1, units="ms")
TRACE = Hexadecimal("a trace id", 32)


@pytest.mark.parametrize(
    ("form", "given", "expected", "same"),
    [
        (WHOLE, " 42 ", "42", True),
        (WHOLE, "41", "42", False),
        (NEAR, "109 ms", "100", True),
        (NEAR, "111", "100", False),
        (NEAR, "7", "5", True),
        (Word("yes or no", ("yes", "no")), "YES", "yes", True),
        (TRACE, "A" * 32, "a" * 32, True),
        (Items("values"), "3, 1 2", "1,2,3", True),
        (Items("values"), "none", "1", False),
        (Edges(), "a->b 3, b->c 5", "b c: 5; a → b 3", True),
        (Edges(), "a->b 3", "a->b 4", False),
        (Fields(count=WHOLE, values=Items("values")), "4 2, 3", "4 3,2", True),
        (Fields(link=Word("a link", ("a->b",)), ms=NEAR), "a -> b 100", "a→b 100ms", True),
        (Moment("a time", 1.0), "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.900", True),
        (Moment("a time", 1.0), "2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05Z", True),
        (Moment("a time", 1.0), "2026-01-02T03:04:05Z", "2026-01-02T03:04:06.100Z", False),
    ],
)
def test_answers_are_the_same_within_the_tolerance(form: Form, given: str, expected: str, same: bool) -> None:
    assert form.same(form.parse(given), form.parse(expected)) is same


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        (WHOLE, "", "'' is not a whole number"),
        (WHOLE, "4.5", "'4.5' is not a whole number"),
        (NEAR, "nan", "'nan' is not milliseconds"),
        (NEAR, "1e999", "is not milliseconds"),
        (Word("yes or no", ("yes", "no")), "perhaps", "'perhaps' is not one of yes, no"),
        (TRACE, "abc", "'abc' is not a trace id of 32 hexadecimal digits"),
        (Items("values", r"\d+"), "1,x", "'x' does not fit"),
        (Items("values"), " , ", "the answer is empty"),
        (Edges(), "a b", "is no edge"),
        (Fields(count=WHOLE, die=Text("a die")), "4", "the answer has 1 of 2 parts"),
        (Moment("a time", 1.0), "noon", "'noon' is not a time"),
        (Text("a query"), " \n", "the answer is empty; expected a query"),
        (WHOLE, "x" * 500 + "\n", "…"),
    ],
)
def test_an_answer_of_the_wrong_type_is_reported_in_one_line(form: Form, text: str, message: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        form.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_time_of_day_is_that_of_the_last_24_hours() -> None:
    now = datetime.now(UTC)
    parsed = Moment("a time", 1.0).parse(now.strftime("%H:%M:%S"))
    assert abs(parsed - now.timestamp()) < 1


def test_the_parts_that_are_wrong_are_named() -> None:
    form = Fields(failed_rolls=WHOLE, values=Items("values"))
    assert form.wrong_parts(form.parse("4 1,2"), form.parse("5 2,1")) == ["failed rolls"]
