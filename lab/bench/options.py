"""The options of ``dicelab bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.supervise.plan import TELEMETRY


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        what: the measurements: ``signals``, ``paths``, ``scale``; empty for the first two.
        rounds: how often each variant is measured.
        seconds: the duration of each measurement.
        clients: the number of connections.
        minutes: how long ``scale`` measures one lab over time.
        telemetry: the package of :mod:`otel` that is measured; ``None`` for both.
        json: the file that every run is written to; ``-`` is stdout.
    """

    what: tuple[str, ...]
    rounds: int
    seconds: float
    clients: int
    minutes: float
    telemetry: str | None
    json: Path | None

    @property
    def packages(self) -> Sequence[str]:
        return [self.telemetry] if self.telemetry else TELEMETRY
