"""The game in the page: its form, and what is shown in each state."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.browser.render import render
from frontend.explorer.learn.mystery import NOTHING_KNOWN, answer_of

QUESTION = {
    "question": "What is <wrong>?",
    "began": "2026-01-31T12:00:00Z",
    "answers_from": "2026-01-31T12:01:35Z",
    "components": ["postgres", "nothing"],
    "mechanisms": {"down": "it does not run"},
    "impacts": {"nobody": "only the telemetry"},
    "query": "One SELECT",
    "nothing": "",
    "commitment": "c0ffee",
}
PLAYING = {**NOTHING_KNOWN, "state": "playing", "level": 1, "question": QUESTION, "left": 65.0, "said": "too early"}
RESULT = {
    "score": 40.0,
    "notes": ["component: right"],
    "truth": {"story": ["PostgreSQL was stopped."]},
    "plan": {"seed": 7},
    "nonce": "abc",
    "put_back": True,
}


def shown(game: dict[str, Any], error: str = "") -> str:
    return str(render("explorer/learn/mystery.html", game=game, busy=False, error=error, time_left="1:05"))


def test_an_answer_has_the_fields_that_were_filled_in() -> None:
    form = {"component": "postgres", "component2": "", "mechanism": "down", "since": " +42 ", "trace": "", "other": "x"}
    assert answer_of(form) == {"component": ["postgres"], "mechanism": ["down"], "since": "+42"}
    assert answer_of({"component": "a", "component2": "b", "query": 5}) == {"component": ["a", "b"], "query": "5"}
    assert answer_of({}) == {}


def test_a_running_game_shows_the_question_the_time_and_the_last_message() -> None:
    html = shown(PLAYING)
    for text in ("What is &lt;wrong&gt;?", "1:05", "too early", "Pause", "c0ffee", "it does not run"):
        assert text in html, text
    assert "Start a game" not in html
    assert "Continue" in shown({**PLAYING, "paused": True})
    assert "Second component" in shown({**PLAYING, "level": 3})
    assert "Second component" not in html


@pytest.mark.parametrize(("state", "text"), [("preparing", "being prepared"), ("ending", "put back …")])
def test_the_page_says_when_a_game_is_being_prepared_or_ended(state: str, text: str) -> None:
    html = shown({**NOTHING_KNOWN, "state": state})
    assert text in html
    assert "Start a game" not in html


def test_a_finished_game_shows_the_score_and_the_story() -> None:
    history = [{"at": "2026-01-31", "level": 1, "score": 40.0, "given_up": True}]
    html = shown({**NOTHING_KNOWN, "state": "over", "result": RESULT, "history": history})
    for text in (
        "Score: 40 of 100",
        "PostgreSQL was stopped.",
        "component: right",
        "40 points, given up",
        "Start a game",
    ):
        assert text in html, text
    assert "see dicelab status" not in html
    assert "see dicelab status" in shown({**NOTHING_KNOWN, "state": "over", "result": {**RESULT, "put_back": False}})


def test_an_error_is_an_alert() -> None:
    assert 'role="alert"' in shown(NOTHING_KNOWN, "a game is under way already")
    assert 'role="alert"' not in shown(NOTHING_KNOWN)
