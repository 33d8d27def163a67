"""A game for the page: one process, which keeps its truth to itself until it is over."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.page.game import HostedGame

# Speaks as ``dicelab mystery --json`` does, without a lab. The level decides what it does.
COMMAND = """
import json, signal, sys
def say(**document): print(json.dumps(document), flush=True)
level = sys.argv[sys.argv.index("--level") + 1] if "--level" in sys.argv else "2"
if level == "3":
    sys.exit("a line before\\ndicelab: another experiment runs in this lab")
def ended(*_):
    print("dicelab: interrupted: everything is put back, and this game does not count", file=sys.stderr)
    sys.exit(1)
signal.signal(signal.SIGTERM, ended)
say(question="What is wrong?", seconds=900, commitment="c0ffee")
for line in sys.stdin:
    word = line.strip()
    if word in ("pause", "resume"):
        say(said=word, left=800, paused=word == "pause", over=False)
    elif word != "quit" and json.loads(word).get("component") == ["nobody"]:
        say(said="component 'nobody' is not among them", left=700, paused=False, over=False)
    else:
        say(said="over", left=600, paused=False, over=True)
        say(score=40, given_up=word == "quit", truth={"story": ["the truth"]}, argv=sys.argv[1:])
        break
"""


@asynccontextmanager
async def hosted(run_dir: Path, patience: float = 20.0) -> AsyncIterator[HostedGame]:
    game = HostedGame(run_dir, (sys.executable, "-c", COMMAND), patience)
    yield game
    await game.close()


async def until(game: HostedGame, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            status, state, error = await game.do("state", "")
            assert (status, error) == (0, "")
            if reached(state):
                found: dict[str, Any] = state
                return found
            await asyncio.sleep(0.02)


def is_in(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: bool(state["state"] == name)


async def test_a_game_from_its_question_to_its_score(tmp_path: Path) -> None:
    async with hosted(tmp_path) as game:
        assert (await game.do("state", ""))[1]["state"] == "none"
        status, state, _ = await game.do("start", '{"level": "1", "seed": "12345678901234567890", "within": ""}')
        assert (status, state["state"], state["level"]) == (0, "preparing", 1)
        assert (await game.do("start", "{}"))[::2] == (2, "a game is under way already")
        state = await until(game, is_in("playing"))
        assert state["question"]["commitment"] == "c0ffee"
        assert 800 < state["left"] <= 900
        state = (await game.do("pause", ""))[1]
        assert (state["left"], state["paused"]) == (800, True)
        assert (await game.do("state", ""))[1]["left"] == 800
        assert not (await game.do("resume", ""))[1]["paused"]
        # An invalid answer costs nothing.
        assert (await game.do("answer", "{"))[::2] == (2, "the answer is no JSON")
        state = (await game.do("answer", '{"component": ["nobody"]}'))[1]
        assert (state["state"], state["said"]) == ("playing", "component 'nobody' is not among them")
        assert state["result"] is None
        assert "the truth" not in json.dumps(state)
        await game.do("answer", '{\n"component": ["postgres"]}')
        state = await until(game, is_in("over"))
        assert (state["result"]["score"], state["result"]["given_up"], state["error"]) == (40, False, "")
        expected = ["--json", "--run-dir", str(tmp_path), "--level", "1", "--seed", "12345678901234567890"]
        assert state["result"]["argv"] == expected
        assert (await game.do("quit", ""))[::2] == (2, "no game is under way")


async def test_one_of_two_pages_that_start_at_the_same_time_is_refused(tmp_path: Path) -> None:
    async with hosted(tmp_path) as game:
        answers = await asyncio.gather(game.do("start", '{"level": 1}'), game.do("start", '{"level": 1}'))
        assert sorted(error for _, _, error in answers) == ["", "a game is under way already"]
        await until(game, is_in("playing"))


async def test_a_player_gives_up_and_begins_again(tmp_path: Path) -> None:
    async with hosted(tmp_path) as game:
        for _ in range(2):
            assert (await game.do("start", '{"level": 1}'))[2] == ""
            await until(game, is_in("playing"))
            await game.do("quit", "")
            assert (await until(game, is_in("over")))["result"]["given_up"]


async def test_a_game_that_cannot_begin_reports_why_in_one_line(tmp_path: Path) -> None:
    async with hosted(tmp_path) as game:
        await game.do("start", '{"level": 3}')
        state = await until(game, is_in("none"))
        assert state["error"] == "another experiment runs in this lab"


async def test_a_game_without_a_page_is_ended(tmp_path: Path) -> None:
    async with hosted(tmp_path, patience=0.3) as game:
        await game.do("start", '{"level": 1}')
        await until(game, is_in("playing"))
        await asyncio.sleep(0.6)
        state = await until(game, is_in("none"))
        assert state["error"] == "the page was closed: everything is put back, and this game does not count"


async def test_the_end_of_the_lab_ends_the_game(tmp_path: Path) -> None:
    async with hosted(tmp_path) as game:
        await game.do("start", '{"level": 1}')
        await until(game, is_in("playing"))
        await game.close()
        assert (await game.do("state", ""))[1]["state"] == "none"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"level": "one"}', '{"seed": 1.5}', '{"within": "soon"}', '{"answer": "/etc/passwd"}']
)
async def test_invalid_options_start_no_game(tmp_path: Path, text: str) -> None:
    async with hosted(tmp_path) as game:
        status, state, error = await game.do("start", text)
        assert (status, state["state"], error) == (
            2,
            "none",
            "level and seed must be whole numbers, within a number of seconds",
        )
