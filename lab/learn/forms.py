"""The forms of answers: each parses the text of an answer, and compares two answers."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Any

from lab import InputError

ARROW = re.compile(r"\s*(?:→|->|=>)\s*")


class BadAnswer(InputError):
    """An answer that cannot be parsed; the text says what was expected."""


class Form(ABC):
    """One kind of answer.

    Attributes:
        words: what to type, in words, for the learner.
    """

    words: str

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Parse an answer.

        Raises:
            BadAnswer: when it does not have this form.
        """

    def same(self, given: Any, expected: Any) -> bool:
        """Whether two parsed answers are the same, within the tolerance."""
        return bool(given == expected)

    def wrong_parts(self, given: Any, expected: Any) -> list[str]:
        """The names of the parts that differ; empty for a form without parts."""
        return []


class Number(Form):
    """A number, right within an absolute or a relative tolerance, whichever is larger.

    Args:
        whole: whether only a whole number makes sense.
        units: endings that may follow the number, such as ``ms``.
    """

    def __init__(
        self, words: str, *, absolute: float = 0.0, relative: float = 0.0, whole: bool = False, units: str = ""
    ) -> None:
        self.words = words
        self._absolute, self._relative, self._whole = absolute, relative, whole
        self._units = tuple(units.split())

    def parse(self, text: str) -> float:
        bare = text.strip()
        for unit in self._units:
            bare = bare.removesuffix(unit).rstrip()
        try:
            number = int(bare) if self._whole else float(bare)
        except ValueError:
            raise BadAnswer(f"{_short(text)} is not {self.words}") from None
        if not math.isfinite(number):
            raise BadAnswer(f"{_short(text)} is not {self.words}")
        return number

    def same(self, given: float, expected: float) -> bool:
        return abs(given - expected) <= max(self._absolute, self._relative * abs(expected)) + 1e-9


class Word(Form):
    """One of a few words."""

    def __init__(self, words: str, choices: tuple[str, ...]) -> None:
        self.words = words
        self._choices = choices

    def parse(self, text: str) -> str:
        word = text.strip().lower()
        if word not in self._choices:
            raise BadAnswer(f"{_short(text)} is not one of {', '.join(self._choices)}")
        return word


class Hexadecimal(Form):
    """A trace id (32 digits) or a span id (16 digits)."""

    def __init__(self, words: str, digits: int) -> None:
        self.words = words
        self._digits = digits

    def parse(self, text: str) -> str:
        identifier = text.strip().lower()
        if not re.fullmatch(rf"[0-9a-f]{{{self._digits}}}", identifier):
            raise BadAnswer(f"{_short(text)} is not {self.words} of {self._digits} hexadecimal digits")
        return identifier


class Items(Form):
    """A set of words or numbers, in any order, separated by commas or spaces; ``none`` for the empty set."""

    def __init__(self, words: str, pattern: str = r"\S+") -> None:
        self.words = words
        self._pattern = re.compile(pattern)

    def parse(self, text: str) -> frozenset[str]:
        items = frozenset(part for part in re.split(r"[,;\s]+", text.strip()) if part)
        if not items:
            raise BadAnswer(f"the answer is empty; expected {self.words}")
        if items == {"none"}:
            return frozenset()
        for item in sorted(items):
            if not self._pattern.fullmatch(item):
                raise BadAnswer(f"{_short(item)} does not fit; expected {self.words}")
        return items


class Moment(Form):
    """A time of day or a timestamp, in UTC; right if it differs by at most ``tolerance`` seconds."""

    def __init__(self, words: str, tolerance: float) -> None:
        self.words = words
        self._tolerance = tolerance

    def parse(self, text: str) -> float:
        """Seconds since 1970; a time of day is that of the last 24 hours."""
        bare = text.strip().upper().removesuffix("Z")
        now = datetime.now(UTC)
        try:
            if "T" in bare:
                moment = datetime.fromisoformat(bare)
            else:
                moment = datetime.combine(now.date(), datetime.strptime(_with_fraction(bare), "%H:%M:%S.%f").time())
        except ValueError:
            raise BadAnswer(f"{_short(text)} is not {self.words}") from None
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        return seconds - 86400 if "T" not in bare and seconds > now.timestamp() + 60 else seconds

    def same(self, given: float, expected: float) -> bool:
        return abs(given - expected) <= self._tolerance


class Edges(Form):
    """Edges of a graph with their counts: ``a→b 3, b→c 5``."""

    words = "each edge with its count, such as: frontend->dice-roller 3, dice-roller->die-service 5"

    def parse(self, text: str) -> dict[tuple[str, str], int]:
        edges = {}
        for part in re.split(r"[,;\n]+", text.strip()):
            match = re.fullmatch(r"([\w-]+) ([\w-]+)[ :=]+(\d+)", ARROW.sub(" ", part.strip()))
            if match is None:
                raise BadAnswer(f"{_short(part)} is no edge; expected {self.words}")
            edges[match[1], match[2]] = int(match[3])
        return edges


class Fields(Form):
    """Several values, separated by spaces; the last one takes the rest of the text."""

    def __init__(self, **forms: Form) -> None:
        self._forms = forms
        self.words = ", then ".join(form.words for form in forms.values()) + " (separated by spaces)"

    def parse(self, text: str) -> dict[str, Any]:
        parts = ARROW.sub("->", text).split(maxsplit=len(self._forms) - 1)
        if len(parts) < len(self._forms):
            raise BadAnswer(f"the answer has {len(parts)} of {len(self._forms)} parts; expected {self.words}")
        return {name: form.parse(part) for (name, form), part in zip(self._forms.items(), parts, strict=True)}

    def same(self, given: dict[str, Any], expected: dict[str, Any]) -> bool:
        return not self.wrong_parts(given, expected)

    def wrong_parts(self, given: dict[str, Any], expected: dict[str, Any]) -> list[str]:
        return [
            name.replace("_", " ") for name, form in self._forms.items() if not form.same(given[name], expected[name])
        ]


class Text(Form):
    """Any text that is not empty, such as a query."""

    def __init__(self, words: str) -> None:
        self.words = words

    def parse(self, text: str) -> str:
        if not text.strip():
            raise BadAnswer(f"the answer is empty; expected {self.words}")
        return text.strip()


def _with_fraction(text: str) -> str:
    return text if "." in text else f"{text}.0"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:40] + "…")
