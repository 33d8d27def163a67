"""A roll and its result, and the rolls of a session, which the browser keeps across a reload."""

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
    """One click and its result."""

    at: int  # milliseconds since 1970, which a browser's numbers represent exactly
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
    def succeeded(self) -> list[int]:
        """The faces of the rolls that succeeded."""
        return [face for face in self.faces if face is not None]

    @classmethod
    def read(cls, stored: Any) -> Roll | None:
        """Parse a stored roll, which may be anything; ``None`` if it is invalid."""
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
        owner: the user; rolls that another user left in the browser are not shown.
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
        """The value for the browser to store."""
        return {"owner": self._owner, "rolls": [asdict(roll) for roll in self._rolls]}

    def restore(self, stored: Any) -> None:
        """Restore the rolls that the browser has stored."""
        if not isinstance(stored, Mapping) or stored.get("owner") != self._owner:
            return
        kept = stored.get("rolls")
        rolls = [Roll.read(entry) for entry in kept[:HISTORY]] if isinstance(kept, list) else []
        self._rolls.extend(roll for roll in rolls if roll is not None)
