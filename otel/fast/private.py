"""All private names of other packages that ``otel.fast`` uses, with the versions that they were tested with.

Checked at start-up, before anything of the process is traced; where one is missing, ``otel.standard`` is used.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter


@dataclass(frozen=True)
class PrivateName:
    """One name, and the reason why no public name is used."""

    module: str
    name: str
    kind: type
    tested: str  # versions of the package
    reason: str

    def find(self) -> object:
        """The object of that name.

        Raises:
            LookupError: where there is none, or one of another kind.
        """
        try:
            found = attrgetter(self.name)(import_module(self.module))
        except (ImportError, AttributeError):
            found = None
        if not isinstance(found, self.kind):
            raise LookupError(f"{self.module}.{self.name} is not a {self.kind.__name__} (tested with {self.tested})")
        return found


CONTEXT_VARIABLE = PrivateName(
    module="opentelemetry.context",
    name="_RUNTIME_CONTEXT._current_context",
    kind=ContextVar,
    tested="opentelemetry-api 1.45",
    reason="The API's functions take four calls to look up the current span, thirty times a roll; this takes one.",
)
NAMES = (CONTEXT_VARIABLE,)


def missing() -> str | None:
    """What is missing, in one sentence; ``None`` if everything is there."""
    for name in NAMES:
        try:
            name.find()
        except LookupError as error:
            return str(error)
    return None
