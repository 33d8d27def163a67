"""A player's answer: parsed from a JSON document, and validated before it is scored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lab import InputError
from lab.mystery.situations import IMPACTS, MECHANISMS, NOTHING
from lab.signals import format_time

FIELDS = ("component", "mechanism", "since", "impact", "trace", "query")
MAX_GUESSES = 10
MAX_BYTES = 64 * 1024  # bytes of an answer
DAY = 24 * 3600.0  # seconds
MAX_OFFSET = DAY  # seconds from the beginning of a game
EXAMPLE = """\
{"component": "die-service", "mechanism": "down", "since": "2026-01-31T12:00:00Z", "impact": "everyone",
 "trace": "0af7651916cd43dd8448eb211c80319c", "query": "SELECT count(*) FROM spans WHERE status = 'error'"}"""


class BadAnswer(InputError):
    """An answer that is not valid; it costs no points."""


@dataclass(frozen=True)
class Answer:
    """A player's answer.

    Attributes:
        components, mechanisms: in the order in which they were guessed; a wrong one costs points.
        since: when the fault began, in seconds since 1970; ``None`` if the player does not say.
        impact: whom the fault affects; not scored.
        trace: a trace id as evidence.
        query: a SELECT statement or PromQL as evidence.
    """

    components: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ()
    since: float | None = None
    impact: str = ""
    trace: str = ""
    query: str = ""

    def document(self) -> dict[str, Any]:
        return {
            "component": list(self.components),
            "mechanism": list(self.mechanisms),
            "since": None if self.since is None else format_time(self.since),
            "impact": self.impact,
            "trace": self.trace,
            "query": self.query,
        }


def parse(text: str, components: Iterable[str], began: float) -> Answer:
    """Parse an answer, a JSON document.

    Args:
        components: the components that can be named.
        began: when the game began, in seconds since 1970.

    Raises:
        BadAnswer: the text is one line that says what is wrong.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {error}") from None
    if not isinstance(document, Mapping):
        raise BadAnswer("the answer is no JSON object")
    if unknown := sorted(set(document) - set(FIELDS)):
        raise BadAnswer(f"the answer has an unknown field {unknown[0]!r:.40}; fields are {', '.join(FIELDS)}")
    return Answer(
        guesses("component", document.get("component"), components),
        guesses("mechanism", document.get("mechanism"), MECHANISMS),
        moment(document.get("since"), began),
        impact(document.get("impact")),
        trace(document.get("trace")),
        _text("query", document.get("query")),
    )


def guesses(what: str, given: Any, known: Iterable[str]) -> tuple[str, ...]:
    """One name or several.

    Raises:
        BadAnswer: when a name is unknown, or there are too many.
    """
    names = [] if given in (None, "") else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or len(names) > MAX_GUESSES or not all(isinstance(name, str) for name in names):
        raise BadAnswer(f"{what}: a name is expected, or a list of up to {MAX_GUESSES}")
    there = list(known)
    for name in names:
        if name.strip() not in there:
            raise BadAnswer(f"{what} {name!r:.60} is not among {', '.join(there)}")
    return tuple(dict.fromkeys(name.strip() for name in names))


def moment(given: Any, began: float) -> float | None:
    """Parse a time: RFC 3339, ``HH:MM:SS`` in UTC, or seconds after the beginning; returns seconds since 1970.

    Raises:
        BadAnswer: when it is none of these.
    """
    if given in (None, ""):
        return None
    day = datetime.fromtimestamp(began, UTC)
    try:
        if isinstance(given, int | float) and not isinstance(given, bool):
            offset = float(given)
            if not abs(offset) <= MAX_OFFSET:  # also refuses NaN
                raise ValueError
            return began + offset
        text = str(given).strip()
        if text.startswith("+"):
            return moment(float(text[1:]), began)
        of_day = "T" not in text and "-" not in text
        found = datetime.fromisoformat(f"{day:%Y-%m-%d}T{text}" if of_day else text)
        at = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if of_day:  # a game may last past midnight: take the day on which the time is nearest to the beginning
            at = min((at - DAY, at, at + DAY), key=lambda one: abs(one - began))
        return at
    except (ValueError, OverflowError):
        raise BadAnswer(
            f"since {str(given)!r:.60} is no time: give 2026-01-31T12:00:00Z, 12:00:00, or seconds such as +42"
        ) from None


def impact(given: Any) -> str:
    """Whom the fault affects, or an empty string.

    Raises:
        BadAnswer: when it is not one of :data:`IMPACTS`.
    """
    name = _text("impact", given)
    if name and name not in IMPACTS:
        raise BadAnswer(f"impact {name!r:.60} is not among {', '.join(IMPACTS)}")
    return name


def trace(given: Any) -> str:
    """A trace id, or an empty string.

    Raises:
        BadAnswer: when it is not a trace id.
    """
    name = _text("trace", given).lower()
    if name and (len(name) != 32 or not set(name) <= set("0123456789abcdef")):
        raise BadAnswer(f"trace {name!r:.60} is no trace id: 32 hexadecimal digits are expected")
    return name


def _text(what: str, given: Any) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise BadAnswer(f"{what}: a text is expected")
    return given.strip()


def question(components: Iterable[str], began: float, seconds: float | None, commitment: str) -> dict[str, Any]:
    """The question to the player, as JSON.

    Args:
        seconds: the time limit; ``None`` where there is none.
    """
    return {
        "question": "Since the beginning users roll dice. At some time since then something may have gone wrong, at one"
        " place or at two. Which component or link is it, by which mechanism, since when, and whom does it hurt? Give"
        " the id of one trace that shows it, and one query that tells the time of the fault from the time before it.",
        "began": format_time(began),
        "seconds": seconds,
        "components": list(components),
        "mechanisms": MECHANISMS,
        "impacts": IMPACTS,
        "query": "One SELECT statement over the tables spans, lines and samples of dicelab sql, whose result is one"
        " number, or PromQL after promql: (it needs Prometheus on PATH). It is evaluated in windows of the same length"
        " before and during the fault, each shifted to the same time.",
        "nothing": f"Where nothing is wrong, component and mechanism are {NOTHING}, and the rest stays empty.",
        "example": json.loads(EXAMPLE),
        "commitment": commitment,
    }
