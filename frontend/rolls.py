"""A roll and what came of it, and the rolls of a session, which outlive a reload in the browser's own store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frontend.explorer.model import TRACE_ID

HISTORY = 100  # rolls a session remembers
MAX_FACES = 10_000
MAX_TEXT = 500


@dataclass(frozen=True)
class Roll:
    """One click and what came of it."""

    at: int  # milliseconds since 1970: what a browser's numbers hold exactly
    die: str
    status: int
    milliseconds: float
    trace_id: str | None
    faces: tuple[int | None, ...]  # None: that roll failed
    message: str  # empty when all went well

    @property
    def failed(self) -> bool:
        return self.status != 200

    @property
    def came_out(self) -> list[int]:
        return [face for face in self.faces if face is not None]

    @classmethod
    def read(cls, stored: Any) -> Roll | None:
        """From what the browser kept, which may be anything; ``None`` for what is no roll."""
        if not isinstance(stored, Mapping):
            return None
        at, status, milliseconds = stored.get("at"), stored.get("status"), stored.get("milliseconds")
        faces, trace_id = stored.get("faces"), stored.get("trace_id")
        if not (
            isinstance(at, int)
            and 0 <= at < 2**53
            and isinstance(status, int)
            and isinstance(milliseconds, int | float)
            and isinstance(faces, list)
            and len(faces) <= MAX_FACES
            and all(face is None or (isinstance(face, int) and abs(face) < 10**9) for face in faces)
            and (trace_id is None or (isinstance(trace_id, str) and TRACE_ID.fullmatch(trace_id)))
        ):
            return None
        die, message = str(stored.get("die", ""))[:MAX_TEXT], str(stored.get("message", ""))[:MAX_TEXT]
        return cls(at, die, status, float(milliseconds), trace_id, tuple(faces), message)


class History:
    """The rolls of a session, the newest first.

    Args:
        owner: who rolls; what another user left in the browser is not shown.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._rolls: deque[Roll] = deque(maxlen=HISTORY)

    def __iter__(self) -> Iterator[Roll]:
        return iter(self._rolls)

    def __len__(self) -> int:
        return len(self._rolls)

    def add(self, roll: Roll) -> None:
        self._rolls.appendleft(roll)

    def stored(self) -> dict[str, Any]:
        """What the browser keeps."""
        return {"owner": self._owner, "rolls": [asdict(roll) for roll in self._rolls]}

    def restore(self, stored: Any) -> None:
        """Take back what the browser kept."""
        if not isinstance(stored, Mapping) or stored.get("owner") != self._owner:
            return
        kept = stored.get("rolls")
        rolls = [Roll.read(entry) for entry in kept[:HISTORY]] if isinstance(kept, list) else []
        self._rolls.extend(roll for roll in rolls if roll is not None)
