"""``dicelab mystery``: plays a game, records a case, scores an answer to a case, shows the history."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from lab import InputError, LabError, error_text
from lab.client import Lab
from lab.mystery import answer as answers
from lab.mystery import files, player
from lab.mystery.answer import BadAnswer
from lab.mystery.game import Game, Played, play
from lab.mystery.history import History
from lab.mystery.plan import LEVELS, PUBLIC_SEEDS, Plan, draw
from lab.mystery.score import Score, score
from lab.mystery.situations import Facets
from lab.mystery.timer import Timer
from lab.signals import format_time
from lab.terminal import printable, say
from lab.waiting import stop_signal

RECORDED_FAULT = 40.0  # seconds
ACTIONS = "record DIR, score DIR ANSWER, history, seeds, or nothing to play"


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        words: an action and its arguments; none to play.
        seed: determines everything that is random in the game; ``None`` for a random one.
        within: the fault begins at a random time in the second half of this time, in seconds.
        minutes: the time limit.
        answer: a file to which the player writes the answer while the game runs.
    """

    run_dir: Path
    words: Sequence[str]
    seed: int | None
    level: int
    within: float
    minutes: float
    answer: Path | None
    json: bool


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 when it is done, 1 when not every service is ready again after a game.

    Raises:
        InputError: when an action, an option or an answer is not valid.
        LabError: when a game is not possible, or was interrupted.
    """
    action, *rest = options.words or ("play",)
    expected = {"play": 0, "history": 0, "seeds": 0, "record": 1, "score": 2}
    if action not in expected or (action == "play" and options.words):
        raise InputError(f"no such action: {action[:40]!r}; there are {ACTIONS}")
    if len(rest) != expected[action]:
        raise InputError(f"usage: dicelab mystery, and {ACTIONS}")
    if options.level not in LEVELS:
        raise InputError(f"there is no level {options.level}; levels are {LEVELS[0]} to {LEVELS[-1]}")
    if action == "history":
        return _history(options, console)
    if action == "seeds":
        if options.json:
            print(json.dumps(list(PUBLIC_SEEDS)))
        else:
            say(console, " ".join(map(str, PUBLIC_SEEDS)))
        return 0
    if action == "score":
        return _score(Path(rest[0]), Path(rest[1]), options, console)
    if options.answer is not None and (action == "record" or options.answer.exists()):
        raise InputError(
            f"{options.answer} is there already; it is written while the game runs"
            if action == "play"
            else "--answer is for a game; a recorded case is scored by dicelab mystery score DIR ANSWER"
        )
    lab = Lab.in_run_dir(options.run_dir)
    seed = random.SystemRandom().randrange(2**48) if options.seed is None else options.seed
    half = options.within / 2
    plan = draw(seed, options.level, Facets.of(lab), steady=half, uncertain=half)
    if action == "record":
        return _record(Path(rest[0]), lab, plan, options, console)
    return asyncio.run(_play(lab, plan, options, console))


async def until_stopped(lab: Lab, plan: Plan, playing: Any) -> Played | None:
    """Play; returns ``None`` when a signal has ended the game. Either way the fault is removed.

    Raises:
        LabError: when the game is not possible, or the lab stops answering.
    """
    async with stop_signal() as stop, lab:
        game = asyncio.ensure_future(play(lab, plan, playing))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([game, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not game.done():
                game.cancel()
                await asyncio.gather(game, return_exceptions=True)
                return None
            return game.result()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise LabError(f"a part of the lab went away in between: {error_text(error)}") from None
        finally:
            stopped.cancel()


# --- a game ---


async def _play(lab: Lab, plan: Plan, options: Options, console: Console) -> int:
    sessions: list[player.Session] = []
    lines = player.Lines() if options.answer is None else None

    def tell(text: str) -> None:
        if options.json:
            print(json.dumps({"said": text, **(sessions[0].progress() if sessions else {})}), flush=True)
        else:
            say(console, printable(text))

    async def playing(game: Game) -> None:
        session = player.Session(game, Timer(60 * options.minutes), options.within + player.MIN_FAULT_SECONDS)
        sessions.append(session)
        _show_question(session, options, console)
        if options.answer is not None:
            await player.by_file(session, options.answer, tell)
        elif lines is not None and options.json:
            await player.by_documents(session, lines, tell)
        elif lines is not None:
            await player.by_prompts(session, lines, tell)
        session.over = True
        game.evidence = [session.answer.trace] if session.answer.trace else []
        tell("The game is over; everything is put back ...")

    if not options.json:
        say(console, "Preparing the game: every service is restarted once, and users arrive ...", "dim")
    played = await until_stopped(lab, plan, playing)
    if played is None:
        raise LabError("interrupted: everything is put back, and this game does not count")
    session = sessions[0]
    try:
        result = await asyncio.to_thread(score, played.case, played.truth, session.answer)
    except BadAnswer as error:  # the query was valid on empty tables, but fails on these data
        tell(str(error))
        result = await asyncio.to_thread(score, played.case, played.truth, replace(session.answer, query=""))
    _show_result(played, session, result, options, console)
    History(options.run_dir).add(
        {
            "at": format_time(time.time()),
            "seed": plan.seed,
            "level": plan.level,
            "stage": plan.facets.stage,
            "situation": plan.name,
            "score": result.total,
            "seconds": round(session.timer.used, 1),
            "given_up": session.given_up,
        }
    )
    return 0 if played.put_back else 1


def _show_question(session: player.Session, options: Options, console: Console) -> None:
    question = session.question()
    if options.json:
        print(json.dumps(question), flush=True)
        return
    say(console, f"{question['question']}\n")
    say(console, f"Beginning:  {question['began']}; you have {options.minutes:g} minutes")
    say(console, f"Components: {', '.join(question['components'])}")
    say(console, "Mechanisms: " + "; ".join(f"{name}: {text}" for name, text in question["mechanisms"].items()))
    say(console, "Impacts:    " + "; ".join(f"{name}: {text}" for name, text in question["impacts"].items()))
    say(console, f"Query:      {question['query']}")
    say(console, f"{question['nothing']}")
    say(console, f"Commitment: {question['commitment']}", "dim")
    if options.answer is not None:
        say(console, f"Write your answer to {options.answer}, such as\n{answers.EXAMPLE}")


def _show_result(played: Played, session: player.Session, result: Score, options: Options, console: Console) -> None:
    game = played.game
    document = {
        **result.document(),
        "given_up": session.given_up,
        "seconds": round(session.timer.used, 1),
        "truth": played.truth.document(),
        "plan": game.plan.document(),
        "nonce": game.nonce,
        "commitment": game.commitment,
        "indicators": played.indicators,
        "alerts": game.alerts,
        "put_back": played.put_back,
    }
    if options.json:
        print(json.dumps(document), flush=True)
        return
    say(console, "")
    for sentence in played.truth.story:
        say(console, sentence, "bold")
    if game.onset is None:
        say(console, "The game was over before that.")
    elif played.truth.onset is not None:
        say(console, f"It began at {format_time(played.truth.onset)}, {game.plan.onset:.0f} s after the beginning.")
    say(console, _noticed(played.indicators))
    for note in result.notes:
        say(console, f"  {note}")
    say(
        console,
        f"component {result.component:g}/40, mechanism {result.mechanism:g}/25, onset {result.onset:g}/15, evidence"
        f" {result.trace + result.query:g}/20, wrong guesses {result.wrong}",
    )
    say(console, f"Score: {result.total:g} of 100", "bold green" if result.total >= 60 else "bold")
    say(console, f"The seed was {game.plan.seed}, the nonce of the commitment {game.nonce}.", "dim")
    if not played.put_back:
        say(console, "Not every service is ready again: see dicelab status.", "bold red")


def _noticed(indicators: dict[str, Any]) -> str:
    before, during = indicators["before"], indicators["during"]
    if not before.get("requests") or not during.get("requests"):
        return "The users got too few answers to compare."
    return (
        f"Users: {before['failed']:.0%} failed before and {during['failed']:.0%} during it, the median was"
        f" {before['median_ms']} ms and then {during['median_ms']} ms."
    )


# --- cases ---


def _record(directory: Path, lab: Lab, plan: Plan, options: Options, console: Console) -> int:
    files.prepare(directory)
    played = asyncio.run(record(lab, plan, RECORDED_FAULT))
    if played is None:
        raise LabError("interrupted: everything is put back, and nothing was written")
    write(directory, played)
    case = played.case
    say(
        console,
        f"{directory / files.CASE}: {len(case.spans)} spans, {len(case.lines)} lines, {len(case.scrapes)} scrapes;"
        f" the answer is {directory / files.ANSWER}",
    )
    return 0 if played.put_back else 1


async def record(lab: Lab, plan: Plan, fault: float) -> Played | None:
    """Run a game without a player; returns ``None`` when it was interrupted.

    Args:
        fault: the duration of the fault, in seconds.
    """

    async def wait(game: Game) -> None:
        await asyncio.sleep(plan.onset + fault)

    return await until_stopped(lab, plan, wait)


def write(directory: Path, played: Played) -> None:
    """Write a recorded game.

    Raises:
        LabError: when the files cannot be written.
    """
    game = played.game
    question = answers.question(game.plan.facets.components, game.began, None, game.commitment)
    noticed = {**played.indicators, "alerts": game.alerts}
    files.write(directory, played.case, played.truth, question, noticed, game.plan.document(), game.nonce)


def _score(directory: Path, answer: Path, options: Options, console: Console) -> int:
    recorded = files.read(directory)
    try:
        content = answer.read_bytes()
    except OSError as error:
        raise InputError(f"{answer}: {error.strerror}") from None
    if len(content) > answers.MAX_BYTES:
        raise InputError(f"{answer}: longer than {answers.MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InputError(f"{answer}: not a text in UTF-8") from None
    given = answers.parse(text, recorded.question["components"], recorded.case.began)
    result = score(recorded.case, recorded.truth, given)
    if options.json:
        print(json.dumps(result.document(), indent=2))
        return 0
    for note in result.notes:
        say(console, printable(note))
    say(console, f"Score: {result.total:g} of 100", "bold")
    return 0


def _history(options: Options, console: Console) -> int:
    games = History(options.run_dir).read()
    if options.json:
        print(json.dumps(games, indent=2))
        return 0
    for game in games:
        say(
            console,
            printable(
                f"{game.get('at', '')}  level {game['level']}  {game['score']:5g}  {game.get('situation', '')}"
                f"{'  given up' if game.get('given_up') else ''}"
            ),
        )
    if games:
        mean = sum(game["score"] for game in games) / len(games)
        say(console, f"{len(games)} games, {mean:.0f} points on average")
    else:
        say(console, "No game has been played in this run dir.")
    return 0
