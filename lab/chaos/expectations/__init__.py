"""What an experiment expects: each expectation in words, and as a check of the observations.

A check returns a short description of what was found. It raises :class:`~lab.client.Missing` when the expectation is
not met, and :class:`~lab.client.NotRunning` when this lab cannot tell.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lab.chaos.observations import Observations

Check = Callable[[Observations], Awaitable[str]]


@dataclass(frozen=True)
class Expectation:
    """An expectation in words, and the check that decides whether it is met.

    Attributes:
        timed: whether it depends on the duration of responses, which other work on this machine lengthens.
    """

    text: str
    check: Check
    timed: bool = False


def selector(name: str, labels: dict[str, str]) -> str:
    """A metric with labels, in PromQL."""
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name
