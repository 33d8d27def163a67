"""The mystery game in the page: begin, read the question, answer, and see the score.

The lab runs the game and knows its truth; the page only relays. While a game runs, the page requests its state once a
second, whichever tab is open: the lab ends a game whose state no page requests.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from frontend.explorer.context import Context
from frontend.explorer.learn.client import Exercises, Reply

POLL = 1.0  # seconds
UNDER_WAY = ("preparing", "playing", "ending")
MAX_TEXT = 20_000  # characters of a field
NOTHING_KNOWN: dict[str, Any] = {
    "state": "none",
    "level": 0,
    "question": None,
    "left": None,
    "paused": False,
    "said": "",
    "result": None,
    "error": "",
    "history": [],
}


class Mystery:
    """The game's part of the view of exercises."""

    def __init__(self, context: Context, exercises: Exercises) -> None:
        self._context = context
        self._exercises = exercises
        self._game = NOTHING_KNOWN
        self._error = ""
        self._task: asyncio.Task[None] | None = None  # follows a game
        self._doing: asyncio.Task[None] | None = None  # what the user has asked for
        on = context.bridge.on
        on("mystery.start", self._start_asked)
        on("mystery.answer", self._answered)
        on("mystery.pause", lambda _value: self._do("pause"))
        on("mystery.resume", lambda _value: self._do("resume"))
        on("mystery.quit", lambda _value: self._do("quit"))

    def start(self) -> None:
        """Find out whether a game runs, and follow it until it ends."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    def stop(self) -> None:
        for task in (self._task, self._doing):
            if task is not None:
                task.cancel()

    def draw(self) -> None:
        left = self._game["left"]
        self._context.show(
            "learn-mystery",
            "learn/mystery.html",
            game=self._game,
            busy=self._doing is not None and not self._doing.done(),
            error=self._error or self._game["error"],
            time_left=None if left is None else f"{int(left) // 60}:{int(left) % 60:02d}",
        )

    async def _follow(self) -> None:
        while True:
            self._take(await self._exercises.do("mystery", "state"))
            self.draw()
            if self._game["state"] not in UNDER_WAY:
                return
            await asyncio.sleep(POLL)

    def _take(self, reply: Reply) -> None:
        if isinstance(reply.document, dict) and NOTHING_KNOWN.keys() <= reply.document.keys():
            self._game = reply.document

    # --- what the user does ---

    def _start_asked(self, form: Any) -> None:
        if isinstance(form, dict):
            self._do("start", json.dumps({name: _text(form, name) for name in ("level", "seed", "within")}))

    def _answered(self, form: Any) -> None:
        if isinstance(form, dict):
            self._do("answer", json.dumps(answer_of(form)))

    def _do(self, action: str, text: str = "") -> None:
        if self._doing is None or self._doing.done():
            self._doing = asyncio.create_task(self._carry_out(action, text))
            self.draw()

    async def _carry_out(self, action: str, text: str) -> None:
        reply = await self._exercises.do("mystery", action, answer=text)
        self._error = reply.error
        self._take(reply)
        self._doing = None  # the buttons are drawn enabled again
        self.draw()
        self.start()


def answer_of(form: dict[str, Any]) -> dict[str, Any]:
    """The answer of a form, as ``dicelab mystery --json`` reads it; empty fields are left out."""
    answer: dict[str, Any] = {}
    for name in ("component", "mechanism"):
        if named := [value for value in (_text(form, name), _text(form, f"{name}2")) if value]:
            answer[name] = named
    return answer | {name: value for name in ("since", "impact", "trace", "query") if (value := _text(form, name))}


def _text(form: dict[str, Any], name: str) -> str:
    return str(form.get(name, ""))[:MAX_TEXT].strip()
