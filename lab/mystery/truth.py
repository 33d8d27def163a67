"""The right answer to one game, which follows from its plan and from the time at which the fault was injected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.mystery.plan import Plan


@dataclass(frozen=True)
class Truth:
    """The right answer.

    Attributes:
        situation: the names of the situations, joined by ``+``.
        components, mechanisms: those of one fault or of two.
        onset: when the fault was injected, in seconds since 1970; ``None`` where nothing was wrong.
        ended: the end of the game, in seconds since 1970.
        unseen: whether no trace, log line or metric of the services shows the fault.
        loaded: the loaded die and the face that it shows; ``None`` where no die is loaded.
        story: the events of the game, a sentence each.
    """

    situation: str
    components: tuple[str, ...]
    mechanisms: tuple[str, ...]
    impact: str
    onset: float | None
    ended: float
    unseen: bool = False
    loaded: tuple[str, int] | None = None
    story: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, onset: float, ended: float) -> Truth:
        """The right answer to a game.

        Args:
            onset: when the fault was injected; ignored where nothing was wrong.
        """
        loaded = next(
            (
                (str(fault.parameters["die"]), int(fault.parameters["face"]))
                for fault in plan.faults
                if fault.mechanism == "wrong-weights"
            ),
            None,
        )
        return cls(
            plan.name,
            plan.components,
            plan.mechanisms,
            plan.impact,
            None if plan.nothing else onset,
            ended,
            all(fault.situation.unseen for fault in plan.faults),
            loaded,
            tuple(plan.story()),
        )

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Truth:
        """Read the truth from a JSON document.

        Raises:
            KeyError, TypeError, ValueError: when the document is not valid.
        """
        loaded = document["loaded"]
        return cls(
            str(document["situation"]),
            tuple(map(str, document["components"])),
            tuple(map(str, document["mechanisms"])),
            str(document["impact"]),
            None if document["onset"] is None else float(document["onset"]),
            float(document["ended"]),
            bool(document["unseen"]),
            None if loaded is None else (str(loaded[0]), int(loaded[1])),
            tuple(map(str, document["story"])),
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)
