"""All exercises, in order."""

from __future__ import annotations

from lab import LabError
from lab.learn import stage1, stage2, stage3, stage4, stage5, stage6
from lab.learn.exercise import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise
    for exercise in (
        *stage1.EXERCISES,
        *stage2.EXERCISES,
        *stage3.EXERCISES,
        *stage4.EXERCISES,
        *stage5.EXERCISES,
        *stage6.EXERCISES,
    )
}


def find(number: str) -> Exercise:
    """The exercise with a number such as ``1.3``.

    Raises:
        LabError: when there is none.
    """
    try:
        return EXERCISES[number]
    except KeyError:
        raise LabError(f"there is no exercise {number[:20]!r}; dicelab learn lists them") from None
