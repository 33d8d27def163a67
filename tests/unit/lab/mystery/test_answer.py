from __future__ import annotations

import json
from typing import Any

import pytest

from lab.mystery.answer import EXAMPLE, Answer, BadAnswer, parse, question
from lab.mystery.situations import Facets

COMPONENTS = Facets(6).components
BEGAN = 1_767_268_800.0  # 2026-01-01T12:00:00Z


def read(**fields: Any) -> Answer:
    return parse(json.dumps(fields), COMPONENTS, BEGAN)


def test_the_example_can_be_read() -> None:
    found = parse(EXAMPLE, COMPONENTS, BEGAN)
    assert found.components == ("die-service",)
    assert found.trace == "0af7651916cd43dd8448eb211c80319c"
    assert parse(json.dumps(found.document()), COMPONENTS, BEGAN) == found


def test_every_field_is_optional() -> None:
    assert parse("{}", COMPONENTS, BEGAN) == Answer()
    assert read(component="", mechanism=None, since="", impact="", trace="", query="") == Answer()


def test_guesses_are_a_name_or_a_list_each_once() -> None:
    assert read(component="postgres").components == ("postgres",)
    assert read(component=["postgres", " frontend ", "postgres"]).components == ("postgres", "frontend")


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ("2026-01-01T12:00:42Z", 42.0),
        ("2026-01-01T13:00:42+01:00", 42.0),
        ("12:00:42", 42.0),
        ("12:00:42.5", 42.5),
        ("+42", 42.0),
        (42, 42.0),
        (42.25, 42.25),
    ],
)
def test_times(given: Any, after: float) -> None:
    assert read(since=given).since == BEGAN + after


def test_a_time_of_day_is_the_one_nearest_to_the_beginning() -> None:
    midnight = BEGAN + 12 * 3600
    assert parse('{"since": "00:00:10"}', COMPONENTS, midnight - 30).since == midnight + 10
    assert parse('{"since": "23:59:50"}', COMPONENTS, midnight + 30).since == midnight - 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ('{"componnent": "postgres"}', "unknown field 'componnent'"),
        ('{"component": "postgress"}', "component 'postgress' is not among frontend, "),
        ('{"component": 3}', "a name is expected"),
        ('{"component": [3]}', "a name is expected"),
        ('{"component": ["frontend", "' + "x" * 500 + '"]}', "is not among"),
        (json.dumps({"component": ["frontend"] * 11}), "up to 10"),
        ('{"mechanism": "gremlins"}', "mechanism 'gremlins' is not among down, "),
        ('{"since": "yesterday"}', "since 'yesterday' is no time"),
        ('{"since": true}', "since 'True' is no time"),
        ('{"since": 1e12}', "no time"),
        ('{"since": "+nan"}', "no time"),
        ('{"impact": "cats"}', "impact 'cats' is not among"),
        ('{"trace": "abc"}', "no trace id"),
        ('{"trace": 7}', "trace: a text is expected"),
        ('{"query": []}', "query: a text is expected"),
    ],
)
def test_an_invalid_answer_is_reported_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadAnswer, match=message) as caught:
        parse(text, COMPONENTS, BEGAN)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_question_names_everything_that_can_be_answered_and_no_seed() -> None:
    asked = question(COMPONENTS, BEGAN, 900, "c0ffee")
    assert asked["components"] == list(COMPONENTS)
    assert asked["commitment"] == "c0ffee"
    assert "seed" not in json.dumps(asked)
