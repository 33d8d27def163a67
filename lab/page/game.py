"""A game for the page of a running lab: ``dicelab up`` runs ``dicelab mystery --json`` and relays its output.

The game is a process of its own, and only that process knows the truth until the game is over. The page polls its
state; if no page does, the game is ended, and the fault is removed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import LabError
from lab.mystery.history import History

ACTIONS = ("state", "start", "answer", "pause", "resume", "quit")
# Seconds without a page before one has seen the question: the frontend is restarted, and a user may sign in again.
PREPARATION_TIMEOUT = 120.0
PAGE_TIMEOUT = 20.0  # seconds without a page after that
POLL = 0.5  # seconds
REPLY_TIMEOUT = 10.0  # seconds for the game to react to an answer
MAX_LINE = 4 * 1024 * 1024  # bytes
SHOWN_GAMES = 5
BAD_INPUT = 2
OPTIONS: dict[str, Callable[[str], float]] = {"level": int, "seed": int, "within": float}

Reply = tuple[int, Any, str]  # the exit status 0 or 2, the state, the error


class HostedGame:
    """Runs at most one game at a time.

    Args:
        run_dir: the run dir of the lab.
        command: the command line that runs ``dicelab mystery``.
        page_timeout: seconds without a page after which a game is ended.
    """

    def __init__(
        self,
        run_dir: Path,
        command: Sequence[str] = (sys.executable, "-m", "lab.cli", "mystery"),
        page_timeout: float = PAGE_TIMEOUT,
    ) -> None:
        self._run_dir = run_dir
        self._command = command
        self._page_timeout = page_timeout
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._starting = False
        self._news = asyncio.Event()  # set when the game has said something
        self._asked = 0.0  # when a page last asked, by time.monotonic
        self._clear()

    def _clear(self) -> None:
        self._level = 0
        self._question: dict[str, Any] | None = None
        self._result: dict[str, Any] | None = None
        self._seen = False  # whether a page has seen the question
        self._said = self._error = ""
        self._left, self._paused, self._over = 0.0, False, False
        self._heard = time.monotonic()  # when _left was updated

    async def do(self, action: str, text: str) -> Reply:
        """Carry out an action.

        Args:
            text: for ``start``, a JSON object with the options; for ``answer``, the answer as JSON.
        """
        self._asked = time.monotonic()
        self._seen |= self._question is not None
        try:
            if action == "start":
                await self._start(_options(text))
            elif action != "state":
                await self._tell(action, text)
        except LabError as error:
            return BAD_INPUT, await self._state(), str(error)
        return 0, await self._state(), ""

    async def close(self) -> None:
        """Kill a game that is under way: the lab is about to stop."""
        if self._process is not None and self._runs:
            self._process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None:
            await self._process.wait()

    # --- the process ---

    @property
    def _runs(self) -> bool:
        return bool(self._tasks) and not self._tasks[0].done()

    async def _start(self, options: list[str]) -> None:
        if self._runs or self._starting:
            raise LabError("a game is under way already")
        self._starting = True  # another page may ask while the process is being made
        try:
            await self._start_process(options)
        finally:
            self._starting = False

    async def _start_process(self, options: list[str]) -> None:
        self._clear()
        self._level = int(options[options.index("--level") + 1]) if "--level" in options else 2
        self._process = await asyncio.create_subprocess_exec(
            *(*self._command, "--json", "--run-dir", str(self._run_dir), *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
        )
        self._tasks = [
            asyncio.create_task(self._listen(self._process)),
            asyncio.create_task(self._watch(self._process)),
        ]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(process.stderr.read())
        try:
            async for line in process.stdout:
                with suppress(ValueError):
                    self._take(json.loads(line))
            await process.wait()
            lines = (await errors).decode(errors="replace").strip().splitlines()
        finally:
            errors.cancel()
        if self._result is None:
            self._error = self._error or (
                lines[-1].removeprefix("dicelab: ") if lines else "the game has ended without a result"
            )
        self._news.set()

    def _take(self, document: dict[str, Any]) -> None:
        if "question" in document:
            self._question = document
            self._left = float(document["seconds"])
        elif "score" in document:
            self._result = document
        elif "said" in document:
            self._said = str(document["said"])
            self._left = float(document.get("left", self._left))
            self._paused = bool(document.get("paused", self._paused))
            self._over = bool(document.get("over", self._over))
        self._heard = time.monotonic()
        self._news.set()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            await asyncio.sleep(min(POLL, self._page_timeout))
            timeout = max(PREPARATION_TIMEOUT, self._page_timeout) if not self._seen else self._page_timeout
            if not self._over and time.monotonic() - self._asked > timeout:
                self._error = "the page was closed: everything is put back, and this game does not count"
                with suppress(ProcessLookupError):
                    process.terminate()
                return

    async def _tell(self, action: str, text: str) -> None:
        if not self._runs or self._process is None:
            raise LabError("no game is under way")
        if self._over:
            raise LabError("the game is over already")
        if self._question is None:
            if action != "quit":
                raise LabError("the game is still being prepared")
            self._process.terminate()
            return
        line = _one_line(text) if action == "answer" else action
        assert self._process.stdin is not None
        self._news.clear()
        try:
            self._process.stdin.write(f"{line}\n".encode())
            await self._process.stdin.drain()
        except ConnectionError:
            raise LabError("the game has just ended") from None
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), REPLY_TIMEOUT)

    # --- what is shown ---

    async def _state(self) -> dict[str, Any]:
        """The state of the game for the page, without anything that the player must not know."""
        if self._runs:
            name = "preparing" if self._question is None else "ending" if self._over else "playing"
        else:
            name = "over" if self._result is not None else "none"
        gone = 0.0 if self._paused else time.monotonic() - self._heard
        playing = name == "playing"
        games: list[dict[str, Any]] = []
        if not self._runs:
            with suppress(LabError):
                games = (await asyncio.to_thread(History(self._run_dir).read))[-SHOWN_GAMES:]
        return {
            "state": name,
            "level": self._level,
            "question": self._question if self._runs else None,
            "left": max(0.0, round(self._left - gone, 1)) if playing else None,
            "paused": self._paused and playing,
            "said": self._said,
            "result": self._result if name == "over" else None,
            "error": "" if self._runs else self._error,
            "history": games,
        }


def _options(text: str) -> list[str]:
    """The options of the command for a JSON object; the command itself checks their values.

    Raises:
        LabError: when it is not valid.
    """
    try:
        given = json.loads(text or "{}")
        if not isinstance(given, dict) or not set(given) <= set(OPTIONS):
            raise ValueError
        values = {name: OPTIONS[name](str(value)) for name, value in given.items() if value not in (None, "")}
    except (ValueError, RecursionError):
        raise LabError("level and seed must be whole numbers, within a number of seconds") from None
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _one_line(text: str) -> str:
    """A JSON document in one line.

    Raises:
        LabError: when it is not JSON.
    """
    try:
        return json.dumps(json.loads(text))
    except (ValueError, RecursionError):
        raise LabError("the answer is no JSON") from None
