"""How a player answers: at prompts, by JSON documents on standard input, or in a file."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lab import LabError
from lab.mystery import answer as answers
from lab.mystery.answer import Answer, BadAnswer
from lab.mystery.evidence import check_query
from lab.mystery.game import Game
from lab.mystery.plan import WITHIN
from lab.mystery.score import WRONG_GUESS
from lab.mystery.situations import IMPACTS, MECHANISMS
from lab.mystery.timer import Timer
from lab.signals import format_time

POLL = 0.25  # seconds between two looks at a file, and at the clock
MIN_FAULT_SECONDS = 15.0  # how long the fault, if there is one, lasts at least before answers are taken
EARLIEST = WITHIN + MIN_FAULT_SECONDS  # seconds after the beginning from which answers are taken
HELP = "answer: give your answer; time, pause, resume, question; quit: give up"
Say = Callable[[str], None]


@dataclass
class Session:
    """One player's part of a game.

    Attributes:
        answer: the parts of the answer that have been given.
        earliest: answers are taken from so many seconds after the beginning on.
        given_up: whether the player has left without an answer.
        over: whether the player's part has ended: by an answer, by giving up, or because the time is up.
    """

    game: Game
    timer: Timer
    earliest: float = EARLIEST
    answer: Answer = field(default_factory=Answer)
    given_up: bool = False
    over: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        return self.game.plan.facets.components

    def question(self) -> dict[str, Any]:
        asked = answers.question(self.components, self.game.began, self.timer.seconds, self.game.commitment)
        return {**asked, "answers_from": format_time(self.game.began + self.earliest)}

    def progress(self) -> dict[str, Any]:
        """The remaining time, as JSON."""
        return {"left": round(self.timer.left, 1), "paused": self.timer.paused, "over": self.over}

    def read(self, text: str) -> Answer:
        """Parse an answer, a JSON document, and check that it can be scored now.

        Raises:
            BadAnswer: when it is not valid, or comes too early.
        """
        found = answers.parse(text, self.components, self.game.began)
        if found.query:
            check_query(found.query)
        self.check_time()
        return found

    @property
    def wait(self) -> float:
        """Seconds until answers are taken."""
        return self.game.began + self.earliest - time.time()

    def check_time(self) -> None:
        """Raise :class:`BadAnswer` if it is too early for an answer."""
        if self.wait > 0:
            moment = format_time(self.game.began + self.earliest)
            raise BadAnswer(f"answers are taken from {moment} on, in {self.wait:.0f} s")


class Lines:
    """The lines of a stream, read by a daemon thread, so that a pending read does not delay the end of the process."""

    def __init__(self, stream: TextIO = sys.stdin) -> None:
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                for line in stream:
                    loop.call_soon_threadsafe(self._queue.put_nowait, line)
                loop.call_soon_threadsafe(self._queue.put_nowait, None)
            except (RuntimeError, ValueError):  # the loop or the stream is closed
                pass

        threading.Thread(target=read, name="standard-input", daemon=True).start()

    async def next(self, timer: Timer) -> str | None:
        """The next line; ``None`` at the end of the stream.

        Raises:
            TimeoutError: when the time is up.
        """
        while timer.left > 0:
            try:
                async with asyncio.timeout(POLL):
                    line = await self._queue.get()
            except TimeoutError:
                continue
            if line is None:  # later calls return None too
                self._queue.put_nowait(None)
            return line
        raise TimeoutError


async def by_file(session: Session, path: Path, say: Say) -> None:
    """Wait for a file with an answer. An invalid answer costs nothing, and the file may be written again.

    The file is read once answers are taken, and once it has not changed for a moment.
    """
    before, refused = b"", b""
    while session.timer.left > 0:
        await asyncio.sleep(POLL)
        content = await asyncio.to_thread(_content, path)
        changed, before = content != before, content
        if changed or not content.strip() or content == refused or session.wait > 0:
            continue
        try:
            session.answer = await asyncio.to_thread(session.read, _text(content))
            return
        except BadAnswer as error:
            say(f"{path}: {error}")
            refused = content
    say("the time is up")


def _content(path: Path) -> bytes:
    """The beginning of a file; empty where the file does not exist.

    Raises:
        LabError: when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(answers.MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None


def _text(content: bytes) -> str:
    if len(content) > answers.MAX_BYTES:
        raise BadAnswer(f"longer than {answers.MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadAnswer("not a text in UTF-8") from None


async def by_documents(session: Session, lines: Lines, say: Say) -> None:
    """Answers as JSON documents, one a line; also ``pause``, ``resume`` and ``quit``."""
    try:
        while (line := await lines.next(session.timer)) is not None:
            word = line.strip()
            if _command(session, word, say):
                continue
            if word == "quit":
                break
            if not word:
                continue
            try:
                session.answer = await asyncio.to_thread(session.read, word)
                return
            except BadAnswer as error:
                say(str(error))
        session.given_up = True
    except TimeoutError:
        say("the time is up")


def _command(session: Session, word: str, say: Say) -> bool:
    """Carry out a command that is possible at any time; returns whether the word is one."""
    timer = session.timer
    if word == "pause":
        timer.pause()
    elif word == "resume":
        timer.resume()
    elif word != "time":
        return False
    say(f"{timer.left:.0f} s are left{', the clock is paused' if timer.paused else ''}")
    return True


async def by_prompts(session: Session, lines: Lines, say: Say) -> None:
    """Ask for each part of the answer."""
    say(HELP)
    try:
        while (line := await lines.next(session.timer)) is not None:
            word = line.strip().lower()
            if not word or _command(session, word, say):
                continue
            if word == "quit":
                break
            if word == "question":
                say(json.dumps(session.question(), indent=2))
                continue
            if word != "answer":
                say(HELP)
                continue
            try:
                session.check_time()
            except BadAnswer as error:
                say(str(error))
                continue
            await _ask(session, lines, say)
            return
        session.given_up = True
    except TimeoutError:
        say("The time is up.")


async def _ask(session: Session, lines: Lines, say: Say) -> None:
    plan, began = session.game.plan, session.game.began
    for what, known, right in (
        ("component", session.components, plan.components),
        ("mechanism", tuple(MECHANISMS), plan.mechanisms),
    ):
        say(f"Which {what}? {', '.join(known)} (Enter: no more)")
        while True:
            found = await _one(session, lines, say, partial(answers.guesses, what, known=known))
            if not found:
                break
            session.answer = _with(session.answer, what, found)
            if found[0] not in right:
                say(f"{found[0]}: wrong, {WRONG_GUESS:g} points less. Another guess? (Enter: no)")
            else:
                say(f"{found[0]}: right. Is there a second one? (Enter: no)")
    say("Since when? 12:00:00 in UTC, or seconds after the beginning such as +42 (Enter: not known)")
    since = await _one(session, lines, say, lambda text: answers.moment(text, began))
    session.answer = replace(session.answer, since=since)
    say(f"Whom does it hurt? {', '.join(IMPACTS)} (Enter: not known)")
    session.answer = replace(session.answer, impact=await _one(session, lines, say, answers.impact) or "")
    say("Which trace shows it? Its id (Enter: none)")
    session.answer = replace(session.answer, trace=await _one(session, lines, say, answers.trace) or "")
    say(
        "Which query tells it from the time before? On one line: a SELECT with one number as its result, or promql: and"
        " PromQL (Enter: none)"
    )
    session.answer = replace(session.answer, query=await _one(session, lines, say, _query) or "")


def _query(text: str) -> str:
    if text.strip():
        check_query(text.strip())
    return text.strip()


def _with(answer: Answer, what: str, found: Iterable[str]) -> Answer:
    if what == "component":
        return replace(answer, components=tuple(dict.fromkeys((*answer.components, *found))))
    return replace(answer, mechanisms=tuple(dict.fromkeys((*answer.mechanisms, *found))))


async def _one(session: Session, lines: Lines, say: Say, parse: Callable[[str], Any]) -> Any:
    """Ask for one part of an answer, again if it is not valid, which costs nothing."""
    while True:
        line = await lines.next(session.timer)
        if line is None:
            return None
        if _command(session, line.strip(), say):
            continue
        try:
            return await asyncio.to_thread(parse, line.strip())
        except BadAnswer as error:
            say(str(error))
