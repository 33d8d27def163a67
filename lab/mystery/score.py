"""The score of an answer: up to 100 points, computed from the case and the truth alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.mystery import evidence
from lab.mystery.answer import Answer
from lab.mystery.case import Case
from lab.mystery.truth import Truth
from lab.signals import format_time

COMPONENT, MECHANISM, ONSET, TRACE, QUERY = 40.0, 25.0, 15.0, 10.0, 10.0
WRONG_GUESS = 10.0
ONSET_WITHIN = 5.0  # seconds


@dataclass(frozen=True)
class Score:
    """The points of an answer, and why.

    Attributes:
        wrong: the number of wrong guesses.
        impact: whether the impact was right; ``None`` if none was given. It earns no points.
        notes: an explanation of each part.
    """

    component: float
    mechanism: float
    onset: float
    trace: float
    query: float
    wrong: int
    impact: bool | None
    notes: tuple[str, ...]

    @property
    def total(self) -> float:
        points = self.component + self.mechanism + self.onset + self.trace + self.query
        return max(0.0, points - WRONG_GUESS * self.wrong)

    def document(self) -> dict[str, Any]:
        return {
            "score": self.total,
            "component": self.component,
            "mechanism": self.mechanism,
            "onset": self.onset,
            "evidence": self.trace + self.query,
            "wrong_guesses": self.wrong,
            "impact": self.impact,
            "notes": list(self.notes),
        }


def score(case: Case, truth: Truth, answer: Answer) -> Score:
    """The score of an answer.

    Raises:
        BadAnswer: when its query cannot be run.
    """
    component, wrong_components = _share(answer.components, truth.components)
    mechanism, wrong_mechanisms = _share(answer.mechanisms, truth.mechanisms)
    onset, onset_note = _onset(truth, answer, component > 0)
    trace, trace_note = _trace(case, truth, answer, component > 0)
    query, query_note = _query(case, truth, answer, component > 0)
    impact = answer.impact == truth.impact if answer.impact else None
    notes = (
        f"component: {_named(answer.components)}; right is {_named(truth.components)}",
        f"mechanism: {_named(answer.mechanisms)}; right is {_named(truth.mechanisms)}",
        onset_note,
        trace_note,
        query_note,
        f"impact: {answer.impact or 'nothing said'}; right is {truth.impact} (no points)",
    )
    return Score(
        COMPONENT * component,
        MECHANISM * mechanism,
        ONSET * onset,
        TRACE * trace,
        QUERY * query,
        wrong_components + wrong_mechanisms,
        impact,
        notes,
    )


def _share(given: Sequence[str], right: Sequence[str]) -> tuple[float, int]:
    """The share of the right names that was given, and the number of wrong names."""
    named = set(given)
    return len(named & set(right)) / len(right), len(named - set(right))


def _onset(truth: Truth, answer: Answer, component: bool) -> tuple[bool, str]:
    if truth.onset is None:
        return component and answer.since is None, "onset: nothing began"
    if answer.since is None:
        return False, f"onset: nothing said; it was {format_time(truth.onset)}"
    late = answer.since - truth.onset
    return abs(late) <= ONSET_WITHIN, f"onset: {abs(late):.1f} s {'after' if late >= 0 else 'before'} it"


def _trace(case: Case, truth: Truth, answer: Answer, component: bool) -> tuple[bool, str]:
    if truth.unseen:
        return component and not answer.trace, "trace: none shows this, so that none is right"
    if not answer.trace:
        return False, "trace: none given"
    found = evidence.anomaly(case, truth, answer.trace)
    if not found:
        return False, "trace: it shows nothing that was not there before the fault"
    shown = bool(found & set(truth.components))
    where = f"trace: its deepest anomaly is at {_named(sorted(found))}"
    return shown and component, where if component or not shown else f"{where}, but another component was named"


def _query(case: Case, truth: Truth, answer: Answer, component: bool) -> tuple[bool, str]:
    if truth.unseen:
        return component and not answer.query, "query: no span, line or sample tells of this, so that none is right"
    if not answer.query:
        return False, "query: none given"
    separated = evidence.separates(case, truth, answer.query)
    if not separated:
        return False, "query: its values before the fault and during it are not apart"
    return component, "query: it tells the fault from the time before" + ("" if component else ", of another component")


def _named(names: Sequence[str]) -> str:
    return " and ".join(names) or "nothing said"
