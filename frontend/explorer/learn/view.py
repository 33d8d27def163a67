"""The view of exercises: the list with the progress, the chosen exercise, and a field for the answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from frontend.explorer.context import Context
from frontend.explorer.learn import guide
from frontend.explorer.learn.client import Exercises, Reply
from frontend.explorer.learn.mystery import Mystery

STAGE = re.compile(r"[1-9]")
NUMBER = re.compile(r"[1-9]\.[1-9]")
TRACE_ID = re.compile(r"\b([0-9a-f]{32})\b")
MAX_ANSWER = 20_000  # characters
POLL = 1.0  # seconds, while an exercise is being prepared for another page
DOING = {"ask": "The exercise is being prepared …", "answer": "The answer is being checked …"}


class LearnView:
    """Lets the user choose an exercise, begin an attempt, and answer."""

    name = "learn"
    title = "Learn"
    regions = ("learn-list", "learn-exercise", "learn-guide", "learn-mystery")

    def __init__(self, context: Context, exercises: Exercises) -> None:
        self._context = context
        self._exercises = exercises
        self._mystery = Mystery(context, exercises)
        self._entries: list[dict[str, Any]] | None = None
        self._number = ""
        self._question = self._expected = ""
        self._doing = ""  # what the user waits for
        self._verdict: str | None = None  # right, wrong or error
        self._message = ""
        self._answer = ""
        self._guide: tuple[str, Markup] | None = None  # a stage and its guide
        self._waiting = ""  # the exercise that is being prepared or checked for some page
        self._fresh = False
        self._task: asyncio.Task[None] | None = None
        on = context.bridge.on
        on("learn.choose", self._choose)
        on("learn.ask", lambda _value: self._start("ask"))
        on("learn.answer", self._answered)
        on("learn.hint", lambda _value: self._start("hint"))
        on("learn.guide", self._toggle_guide)
        on("learn.solution", lambda _value: self._start("solution"))

    def start(self) -> None:
        """Start, once the browser is connected."""
        self._mystery.start()

    def stop(self) -> None:
        """Stop, once the session has ended. The lab completes a running action, and the progress shows it."""
        self._mystery.stop()
        if self._task is not None:
            self._task.cancel()

    def read(self, query: Mapping[str, str]) -> None:
        number = query.get("exercise", "")
        self._set(number if NUMBER.fullmatch(number) else "")

    def query(self) -> dict[str, str]:
        return {"exercise": self._number} if self._number else {}

    def draw(self) -> None:
        self._context.show("learn-list", "learn/list.html", entries=self._entries, number=self._number)
        self._draw_exercise()
        self._draw_guide()
        self._mystery.draw()

    def show_failure(self, message: str) -> None:
        self._context.show("learn-list", "failure.html", message=message)

    async def refresh(self) -> float | None:
        self._mystery.start()  # another page may have begun a game
        if self._doing or self._fresh:
            return None
        busy = await self._fetch()
        self.draw()
        return POLL if busy else None

    # --- what the user does ---

    def _choose(self, value: Any) -> None:
        if isinstance(value, str) and NUMBER.fullmatch(value) and not self._doing:
            self._set(value)
            self.draw()
            self._context.changed(True)

    def _set(self, number: str) -> None:
        if number != self._number or not number:
            self._number = number
            self._question = self._expected = self._message = self._answer = ""
            self._verdict = None
        self._fresh = False

    def _answered(self, form: Any) -> None:
        if isinstance(form, dict):
            self._answer = str(form.get("answer", ""))[:MAX_ANSWER]
            self._start("answer")

    def _toggle_guide(self, value: Any) -> None:
        if self._guide is not None and self._guide[0] == value:
            self._guide = None
            self._draw_guide()
        elif isinstance(value, str) and STAGE.fullmatch(value) and self._idle:
            self._task = asyncio.create_task(self._read_guide(value))

    @property
    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    async def _read_guide(self, stage: str) -> None:
        reply = await self._exercises.do("guide", stage)
        if isinstance(reply.document, dict):
            self._guide = stage, guide.html(str(reply.document["text"]))
            self._draw_guide()
            self._context.bridge.send(say=f"The guide to stage {stage} is below.")
        else:
            self._verdict, self._message = "error", reply.error or "the lab gave no answer"
            self._draw_exercise()

    def _start(self, action: str) -> None:
        if self._number and self._idle:
            self._task = asyncio.create_task(self._do(action))

    async def _do(self, action: str) -> None:
        self._doing = DOING.get(action, "One moment …")
        self._verdict, self._message = None, ""
        self._draw_exercise()
        reply = await self._exercises.do(action, self._number, answer=self._answer if action == "answer" else "")
        self._take(action, reply)
        if action in DOING:
            await self._fetch()
        self._doing = ""  # not earlier: until here a click would be ignored
        self.draw()
        if self._message:
            self._context.bridge.send(say=self._message)

    def _take(self, action: str, reply: Reply) -> None:
        document = reply.document if isinstance(reply.document, dict) else {}
        if reply.error or not document:
            self._verdict, self._message = "error", reply.error or "the lab gave no answer"
        elif action == "ask":
            self._question, self._expected, self._answer = str(document["text"]), str(document["expected"]), ""
        elif action == "answer":
            self._verdict, self._message = "right" if document["right"] else "wrong", str(document["text"])
        else:
            self._verdict, self._message = action, str(document["text"])

    # --- what is shown ---

    async def _fetch(self) -> bool:
        """Fetch the list and the current question; returns whether an exercise is being prepared or checked."""
        reply = await self._exercises.do("list")
        if isinstance(reply.document, list):
            self._entries = reply.document
        elif reply.error:
            self._verdict, self._message = "error", reply.error
        if self._number:
            found = await self._exercises.do("question", self._number)
            document = found.document if isinstance(found.document, dict) else {}
            self._question, self._expected = str(document.get("text", "")), str(document.get("expected", ""))
            reply = found
        self._fresh = not reply.busy
        self._waiting = reply.busy
        return bool(reply.busy)

    def _draw_guide(self) -> None:
        stage, text = self._guide or ("", None)
        self._context.show("learn-guide", "learn/guide.html", stage=stage, guide=text)

    def _draw_exercise(self) -> None:
        entry = next((one for one in self._entries or () if one["exercise"] == self._number), None)
        busy = f"Exercise {self._waiting} is being prepared or checked …" if self._waiting else ""
        self._context.show(
            "learn-exercise",
            "learn/exercise.html",
            entry=entry,
            parts=TRACE_ID.split(self._question),
            expected=self._expected,
            doing=self._doing or busy,
            verdict=self._verdict,
            message=TRACE_ID.split(self._message),
            answer=self._answer,
        )
