"""The actions of ``dicelab learn`` and of the page: list, ask, answer, hint, solution, reset."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError, error_text
from lab.client import Lab, Missing, NotRunning
from lab.learn.catalogue import EXERCISES, find
from lab.learn.exercise import Exercise, Verdict, fill
from lab.learn.lesson import Lesson
from lab.learn.progress import Progress
from lab.paths import DOCS
from lab.supervise import engines

GUIDES = DOCS / "stages"
NEW, ASKED, WRONG, RIGHT = "new", "asked", "wrong", "right"
GET_IT = {"promtool": "Debian's package prometheus"} | {engine.name: engine.get_it for engine in engines.ENGINES}


@dataclass(frozen=True)
class Course:
    """The exercises, with the learner's progress in one run dir.

    Attributes:
        outage: how long Loki is stopped in the exercise about an outage, in seconds.
    """

    run_dir: Path
    outage: float = 60.0

    @property
    def progress(self) -> Progress:
        return Progress(self.run_dir)

    def document(self, action: str, about: str = "") -> Any:
        """The JSON document of an action that only reads, one of :data:`lab.learn.READING`.

        Args:
            about: the number of an exercise, or of a stage for its guide.

        Raises:
            LabError: when there is none.
        """
        if action == "list":
            return self.list()
        if action == "guide":
            return {"text": self.guide(about), "stage": int(about)}
        texts = {"question": self.question, "hint": self.hint, "solution": self.solution}
        return {"exercise": about, "text": texts[action](about), "expected": find(about).form.words}

    def list(self) -> list[dict[str, Any]]:
        """Every exercise: its number, title, stage, state and tries, the tools to use, and why it cannot be asked now.

        Raises:
            LabError: when the progress cannot be read.
        """
        known = self.progress.read()
        lab = self._find()
        return [
            {
                "exercise": one.number,
                "title": one.title,
                "stage": one.stage,
                "by": one.by,
                "engines": sorted({*one.engines, *one.running}),
                "state": known.get(one.number, {}).get("state", NEW),
                "done": bool(known.get(one.number, {}).get("done", False)),
                "tries": int(known.get(one.number, {}).get("tries", 0)),
                "needs": obstacle(one, lab),
            }
            for one in EXERCISES.values()
        ]

    async def ask(self, number: str, seed: int | None = None) -> str:
        """Begin an attempt; returns the question.

        Raises:
            LabError: when the exercise cannot be asked now; an earlier attempt is kept.
        """
        exercise = find(number)
        if reason := obstacle(exercise, self._find()):  # before the lock, which creates the run dir
            raise LabError(reason)
        progress = self.progress
        with progress.locked():
            known = progress.read()
            seed = random.SystemRandom().randrange(2**32) if seed is None else seed
            began = time.time()
            async with self._lesson(seed) as lesson:
                facts = await exercise.prepare(lesson)
            entry = known.setdefault(number, {})
            entry |= {"state": ASKED, "facts": facts, "seed": seed, "asked": began, "seconds": time.time() - began}
            progress.write(known)
        return exercise.ask(facts)

    def question(self, number: str) -> str:
        """The question of the attempt that is under way.

        Raises:
            LabError: when none is.
        """
        exercise, entry = find(number), self.progress.read().get(number, {})
        if "facts" not in entry:
            raise _not_asked(number)
        return exercise.ask(entry["facts"])

    async def answer(self, number: str, text: str) -> Verdict:
        """Check an answer, and save the result.

        Raises:
            LabError: when it cannot be read or checked. Such an answer does not count as a try.
        """
        exercise = find(number)
        progress = self.progress
        if not progress.begun:
            raise _not_asked(number)
        with progress.locked():
            known = progress.read()
            entry = known.get(number, {})
            if "facts" not in entry:
                raise _not_asked(number)
            async with self._lesson(int(entry["seed"])) as lesson:
                verdict = await exercise.check(lesson, entry["facts"], text)
            entry["tries"] = int(entry.get("tries", 0)) + 1
            entry["state"] = RIGHT if verdict.right else WRONG
            entry["done"] = bool(entry.get("done")) or verdict.right
            if verdict.final:
                del entry["facts"]
                verdict = Verdict(False, f"{verdict.text} This attempt is over: dicelab learn {number} begins another.")
            progress.write(known)
        return verdict

    def hint(self, number: str) -> str:
        """The hint of an exercise."""
        return find(number).hint

    def solution(self, number: str) -> str:
        """How to find the answer, and the answer of the attempt under way.

        Raises:
            LabError: when no attempt is under way.
        """
        exercise = find(number)
        entry = self.progress.read().get(number, {})
        if "facts" not in entry:
            raise LabError(f"the solution is that of an attempt; begin one with dicelab learn {number}")
        answer = exercise.reference.text(entry["facts"])
        return f"{fill(exercise.solution, entry['facts'])}\n\nThe answer of this attempt: {answer}"

    def guide(self, stage: str) -> str:
        """The guide of a stage, in Markdown.

        Raises:
            LabError: when there is none.
        """
        found = sorted(GUIDES.glob(f"{stage}-*.md")) if stage.isdecimal() else []
        if not found:
            raise LabError(f"there is no guide of a stage {stage[:20]!r} in {GUIDES}")
        return found[0].read_text()

    def reset(self, number: str | None = None) -> None:
        """Forget an exercise, or all of them."""
        if number is not None:
            find(number)
        progress = self.progress
        if not progress.begun:
            return
        with progress.locked():
            if number is None:
                progress.reset()
                return
            known = progress.read()
            known.pop(number, None)
            progress.write(known)

    def _find(self) -> Lab | None:
        try:
            return Lab.in_run_dir(self.run_dir)
        except LabError:
            return None

    @asynccontextmanager
    async def _lesson(self, seed: int) -> AsyncIterator[Lesson]:
        lab = self._find()
        directory = self.progress.directory
        try:
            if lab is None:
                yield Lesson(None, directory, seed, self.outage)
                return
            async with lab:
                yield Lesson(lab, directory, seed, self.outage)
        except (Missing, NotRunning) as error:
            raise LabError(str(error)) from None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise LabError(f"a part of the lab went away in between: {error_text(error)}") from None


def _not_asked(number: str) -> LabError:
    return LabError(f"exercise {number} has not been asked; begin with dicelab learn {number}")


def obstacle(exercise: Exercise, lab: Lab | None) -> str:
    """Why an exercise cannot be asked now, and the command that helps; empty when it can be asked."""
    missing = [name for name in exercise.engines if not _on_path(name)]
    if missing:
        return "; ".join(
            f"exercise {exercise.number} needs {name}, which is not on PATH: {GET_IT[name]}" for name in missing
        )
    flags = " --engines" if exercise.running else ""
    if lab is None:
        return f"no lab runs in this run dir; start one with dicelab up --stage {exercise.stage}{flags}"
    if lab.stage < exercise.stage:
        return (
            f"exercise {exercise.number} needs stage {exercise.stage} or later, and stage {lab.stage} runs:"
            f" dicelab down, then dicelab up --stage {exercise.stage}{flags}"
        )
    absent = [name for name in exercise.running if name not in lab.engines]
    if absent:
        get = "".join(f"; {name}: {GET_IT[name]}" for name in absent if not _on_path(name))
        return (
            f"exercise {exercise.number} needs {' and '.join(absent)} in the lab: dicelab down, then"
            f" dicelab up --stage {lab.stage} --engines{get}"
        )
    return ""


def _on_path(name: str) -> bool:
    engine = next((one for one in engines.ENGINES if one.name == name), None)
    return bool(engine.find() if engine else shutil.which(name))
