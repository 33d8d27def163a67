from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.mystery import player
from lab.mystery.answer import Answer
from lab.mystery.plan import draw
from lab.mystery.player import Lines, Session
from lab.mystery.situations import Facets
from lab.mystery.timer import Timer

FACETS = Facets(6)
PLAN = draw(1, 2, FACETS, only=["die-service-down"])


def session(seconds: float = 30.0, earliest: float = 0.0) -> Session:
    game: Any = SimpleNamespace(plan=PLAN, began=time.time(), commitment="c0ffee")
    return Session(game, Timer(seconds), earliest)


@contextmanager
def typed(*lines: str, end: bool = True) -> Iterator[Lines]:
    """Lines from standard input."""
    outlet, entrance = os.pipe()
    with open(outlet) as stream:
        os.write(entrance, "".join(f"{line}\n" for line in lines).encode())
        if end:
            os.close(entrance)
        yield Lines(stream)
        if not end:
            os.close(entrance)


def test_a_timer_can_be_paused() -> None:
    now = 0.0
    timer = Timer(60.0, lambda: now)
    now = 10.0
    assert (timer.used, timer.left) == (10, 50)
    timer.pause()
    now = 100.0
    timer.pause()
    assert (timer.left, timer.paused) == (50, True)
    timer.resume()
    timer.resume()
    now = 120.0
    assert (timer.used, timer.left, timer.paused) == (30, 30, False)
    now = 1000.0
    assert timer.left == 0


async def test_prompts_ask_for_each_part_and_report_wrong_guesses() -> None:
    said: list[str] = []
    one = session()
    with typed(
        *("help", "pause", "time", "resume", "question", "answer"),
        *("postgres", "nobody", "die-service", ""),
        *("down", ""),
        *("noon", "+42"),
        *("cats", "everyone"),
        *("abc", "f" * 32),
        *("SELEC 1", "SELECT count(*) FROM spans"),
    ) as lines:
        await player.by_prompts(one, lines, said.append)
    assert one.answer == Answer(
        ("postgres", "die-service"),
        ("down",),
        one.game.began + 42,
        "everyone",
        "f" * 32,
        "SELECT count(*) FROM spans",
    )
    text = "\n".join(said)
    for expected in (
        "postgres: wrong, 10 points less",
        "component 'nobody' is not among",
        "die-service: right",
        "since 'noon' is no time",
        "impact 'cats'",
        "no trace id",
        "query: Parser Error",
        "the clock is paused",
        '"commitment": "c0ffee"',
    ):
        assert expected in text, expected


async def test_every_part_can_be_left_empty() -> None:
    one = session()
    with typed("answer", "", "", "", "", "", "") as lines:
        await player.by_prompts(one, lines, lambda text: None)
    assert one.answer == Answer()
    assert not one.given_up


@pytest.mark.parametrize("lines", [("quit",), ()])
async def test_a_player_can_give_up(lines: tuple[str, ...]) -> None:
    for play in (player.by_prompts, player.by_documents):
        one = session()
        with typed(*lines) as stream:
            await play(one, stream, lambda text: None)
        assert one.given_up


async def test_the_end_of_the_time_ends_the_prompts_and_keeps_the_guesses() -> None:
    said: list[str] = []
    one = session(0.6)
    with typed("answer", "die-service", end=False) as lines:
        await player.by_prompts(one, lines, said.append)
    assert one.answer.components == ("die-service",)
    assert said[-1] == "The time is up."


async def test_the_end_of_the_input_ends_the_prompts_and_keeps_the_guesses() -> None:
    one = session()
    with typed("answer", "die-service") as lines:
        async with asyncio.timeout(10):
            await player.by_prompts(one, lines, lambda text: None)
    assert one.answer.components == ("die-service",)


async def test_an_answer_that_comes_too_early_is_not_accepted() -> None:
    said: list[str] = []
    one = session(earliest=60)
    with typed("answer", "quit") as lines:
        await player.by_prompts(one, lines, said.append)
    assert any("answers are taken from" in text for text in said)
    with typed('{"component": "frontend"}', "quit") as lines:
        await player.by_documents(one, lines, said.append)
    assert one.answer == Answer()


async def test_invalid_documents_cost_nothing() -> None:
    said: list[str] = []
    one = session()
    with typed(
        "pause", "resume", "", "{", '{"component": "x"}', '{"query": "SELEC"}', '{"component": "frontend"}'
    ) as lines:
        await player.by_documents(one, lines, said.append)
    assert one.answer == Answer(("frontend",))
    assert len(said) == 5


async def test_a_file_is_waited_for_and_may_be_corrected(tmp_path: Path) -> None:
    said: list[str] = []
    one = session()
    path = tmp_path / "answer.json"
    playing = asyncio.ensure_future(player.by_file(one, path, said.append))
    for content in (b'{"component": ', b"\xff", b'{"component": "frontend", "query": "SELEC"}'):
        path.write_bytes(content)
        before = len(said)
        async with asyncio.timeout(10):
            while len(said) == before:
                await asyncio.sleep(0.05)
        assert not playing.done()
    path.write_text(json.dumps({"component": "frontend"}))
    await asyncio.wait_for(playing, 10)
    assert one.answer == Answer(("frontend",))
    assert [text.partition(": ")[2][:20] for text in said] == [
        "the answer is no JSO",
        "not a text in UTF-8",
        "query: Parser Error:",
    ]


async def test_a_file_that_never_comes_is_no_answer(tmp_path: Path) -> None:
    one = session(0.6)
    await player.by_file(one, tmp_path / "answer.json", lambda text: None)
    assert one.answer == Answer()
