"""Answers that are queries: an engine evaluates them in several worlds, and the results are compared.

A world is a set of telemetry for which the right result is known. The learner sees only the first one; the others
reveal a query that is right by accident.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from lab import InputError
from lab.learn.exercise import Exercise, Facts, Verdict
from lab.queries import Rows

Results = TypeVar("Results")


async def with_hint(
    verdict: Verdict,
    exercise: Exercise,
    facts: Facts,
    results: Callable[[str], Awaitable[Results]],
    same: Callable[[Results], bool],
) -> Verdict:
    """Add a hint to a wrong verdict: that of the typical mistake with the same results, else the general one.

    Args:
        results: runs a query in every world.
        same: whether results are equal to those of the answer.
    """
    if verdict.right:
        return verdict
    for mistake in exercise.mistakes:
        with suppress(InputError):
            if same(await results(mistake.text(facts))):
                return Verdict(False, f"{verdict.text} {mistake.hint}")
    return Verdict(False, f"{verdict.text} {exercise.hint}")


def compare(found: Sequence[Rows], worlds: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on the results: right if they are as expected in every world, else with the first that differs."""
    for rows, world in zip(found, worlds, strict=True):
        expected: Rows = world["expected"]
        near = all(
            abs(rows[key] - value) <= max(world["tolerance"], world.get("relative", 0.0) * abs(value)) + 1e-9
            for key, value in expected.items()
            if key in rows
        )
        if rows.keys() != expected.keys() or not near:
            return Verdict(False, f"Not right on {world['name']}, where the query gives {shown(rows)}.")
    return Verdict(True, f"Right on {' and on '.join(str(world['name']) for world in worlds)}.")


def alike(one: Sequence[Rows], other: Sequence[Rows]) -> bool:
    """Whether two queries had the same results in every world."""
    return all(
        a.keys() == b.keys() and all(math.isclose(a[key], b[key], rel_tol=1e-6, abs_tol=1e-9) for key in a)
        for a, b in zip(one, other, strict=True)
    )


def shown(rows: Rows) -> str:
    """A result as short text."""
    if not rows:
        return "nothing"
    words = [f"{key}: {value:.4g}" if key else f"{value:.4g}" for key, value in sorted(rows.items())]
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")
