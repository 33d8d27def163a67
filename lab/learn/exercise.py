"""The parts of an exercise.

:meth:`Exercise.prepare` sends random requests and returns the facts of the attempt, which include the right answer. The
answer comes from the client's own record, from the settings of the supervisor or from raw spans and lines, never from a
query that is being checked. Facts are JSON; the question shows some of them to the learner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.learn.forms import Form
from lab.learn.lesson import Lesson

Facts = dict[str, Any]
Act = Callable[[Lesson, Facts], Awaitable[None]]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the text for the learner.

    Attributes:
        final: whether the attempt ends with this wrong answer, because few answers are possible.
    """

    right: bool
    text: str
    final: bool = False


@dataclass(frozen=True)
class Answered:
    """An answer that is known in advance.

    Attributes:
        text: returns the answer, given the facts of an attempt.
        act: uses the lab as the exercise demands, before the answer is given.
    """

    text: Callable[[Facts], str]
    act: Act | None = None


@dataclass(frozen=True)
class Mistake(Answered):
    """A typical mistake.

    Attributes:
        name: a short description of the mistake.
        hint: the text for the learner.
    """

    name: str = field(kw_only=True)
    hint: str = field(kw_only=True)


Judge = Callable[["Exercise", Lesson, Facts, str], Awaitable[Verdict]]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise.

    Attributes:
        number: its stage and its index there, such as ``1.3``.
        stage: the first stage at which it can be asked.
        by: the tools with which it can be answered.
        question: a template; names in braces are facts.
        form: the form of the answer.
        prepare: prepares an attempt, and returns its facts.
        reference: the right answer.
        mistakes: typical wrong answers, each with a hint.
        hint: shown on request, and after a wrong answer that is not a typical mistake.
        solution: how to find the answer; a template like the question.
        engines: programs that must be on PATH.
        running: engines that must run in the lab.
        judge: checks an answer that cannot simply be compared with the reference.
        accepted: returns further right answers.
        final: whether a wrong answer ends the attempt.
    """

    number: str
    title: str
    by: str
    question: str
    form: Form
    prepare: Callable[[Lesson], Awaitable[Facts]]
    reference: Answered
    mistakes: tuple[Mistake, ...]
    hint: str
    solution: str
    engines: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    judge: Judge | None = None
    accepted: Callable[[Facts], list[str]] | None = None
    final: bool = False

    @property
    def stage(self) -> int:
        return int(self.number.split(".")[0])

    def ask(self, facts: Facts) -> str:
        """The question of an attempt."""
        return fill(self.question, facts)

    async def check(self, lesson: Lesson, facts: Facts, text: str) -> Verdict:
        """Check an answer.

        Raises:
            BadAnswer: when it cannot be read.
            LabError: when it cannot be checked.
        """
        given = self.form.parse(text)
        if self.judge is not None:
            return await self.judge(self, lesson, facts, text.strip())
        right = [self.reference.text(facts), *(self.accepted(facts) if self.accepted else [])]
        expected = [self.form.parse(answer) for answer in right]
        if any(self.form.same(given, one) for one in expected):
            return Verdict(True, "Right.")
        parts = min((self.form.wrong_parts(given, one) for one in expected), key=len)
        what = f"Not right: {' and '.join(parts)}." if parts else "Not right."
        for mistake in self.mistakes:
            if self.form.same(given, self.form.parse(mistake.text(facts))):
                return Verdict(False, f"{what} {mistake.hint}", self.final)
        return Verdict(False, f"{what} {self.hint}", self.final)


def fill(template: str, facts: Mapping[str, Any]) -> str:
    """A template in which names in braces are replaced by facts."""
    return template.format_map(facts)
