"""Every exercise against a real lab: its solution is right, its typical mistakes are wrong and get their hint."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import cli
from lab.client import Lab as AnyLab
from lab.learn.catalogue import EXERCISES
from lab.learn.course import Course
from lab.learn.exercise import Exercise, Facts
from lab.learn.forms import BadAnswer
from lab.learn.lesson import Lesson
from lab.supervise import engines
from tests.support import labs
from tests.support.labs import Lab

# Exercises that need engines in the lab come last, so that each lab is started once.
IN_ORDER = sorted(EXERCISES, key=lambda number: (len(EXERCISES[number].running) > 0, number))
log = logging.getLogger(__name__)
OUTAGE = 6.0  # seconds; for learners it is a minute


@pytest.fixture(scope="module")
def lab_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, bool], Lab]]:
    """A lab for the exercises of a stage, with or without engines; it is kept until another one is requested."""
    running: dict[tuple[int, bool], Lab] = {}

    def of(stage: int, with_engines: bool) -> Lab:
        key = stage, with_engines
        if key not in running:
            for lab in running.values():
                lab.stop()
            running.clear()
            arguments = ["--engines"] if with_engines else []
            running[key] = labs.start(tmp_path_factory.mktemp(f"learn{stage}") / "run", stage, *arguments)
        return running[key]

    yield of
    for lab in running.values():
        lab.stop()


def missing_programs(exercise: Exercise) -> list[str]:
    """The programs that an exercise needs but that are not on PATH."""
    needed = {*exercise.engines, *exercise.running}
    found = {engine.name for engine in engines.ENGINES if engine.find()} | {
        name for name in needed if shutil.which(name)
    }
    return sorted(needed - found)


class Learner:
    """Works on one exercise as the command does, and checks answers on a fixed attempt."""

    def __init__(self, exercise: Exercise, lab: Lab) -> None:
        self.exercise = exercise
        self.lab = lab
        self.course = Course(lab.run_dir, OUTAGE)

    async def ask(self) -> Facts:
        began = time.monotonic()
        question = await self.course.ask(self.exercise.number)
        log.info("exercise %s was asked in %.1f s", self.exercise.number, time.monotonic() - began)
        assert question.strip()
        facts: Facts = self.course.progress.read()[self.exercise.number]["facts"]
        return facts

    async def act(self, facts: Facts, what: Any) -> str:
        if what.act is not None:
            async with AnyLab.in_run_dir(self.lab.run_dir) as lab:
                await what.act(Lesson(lab, self.course.progress.directory, 1), facts)
        return str(what.text(facts))

    async def check(self, facts: Facts, answer: str) -> Any:
        async with AnyLab.in_run_dir(self.lab.run_dir) as lab:
            return await self.exercise.check(Lesson(lab, self.course.progress.directory, 1), facts, answer)


@pytest.mark.parametrize("number", IN_ORDER)
async def test_the_solution_is_right_and_each_mistake_gets_its_hint(
    number: str, lab_of: Callable[[int, bool], Lab], capsys: pytest.CaptureFixture[str]
) -> None:
    exercise = EXERCISES[number]
    if missing := missing_programs(exercise):
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    learner = Learner(exercise, lab_of(exercise.stage, bool(exercise.running)))
    assert len(exercise.mistakes) >= 2
    facts = await learner.ask()
    for mistake in exercise.mistakes:
        if mistake.act is not None:
            facts = await learner.ask()
        verdict = await learner.check(facts, await learner.act(facts, mistake))
        assert not verdict.right, mistake.name
        assert mistake.hint in verdict.text, mistake.name
    for empty in ("", " \n"):
        with pytest.raises(BadAnswer):
            await learner.check(facts, empty)
    if exercise.reference.act is not None:
        facts = await learner.ask()
    answer = await learner.act(facts, exercise.reference)
    verdict = await learner.course.answer(number, answer)
    assert verdict.right, (verdict.text, answer, facts)
    solution = learner.course.solution(number)
    assert solution.endswith(answer)
    for statement in re.findall(r'dicelab sql "([^"]+)"', solution):
        if "tempo" not in learner.lab.engines:
            capsys.readouterr()
            assert cli.main(["sql", "--json", "--run-dir", str(learner.lab.run_dir), statement]) == 0
            assert json.loads(capsys.readouterr().out), statement
    assert learner.course.progress.read()[number]["done"]
