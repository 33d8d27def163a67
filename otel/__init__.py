"""Telemetry shared by every service: traces, JSON logs and metrics.

``from otel import logs, metrics, traces`` gives the modules of one of two packages with the same interface:
``otel.standard`` uses the standard packages as their documentation shows them, ``otel.fast`` does the same at a quarter
of the cost. The variable ``TELEMETRY`` chooses.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from otel.standard import logs, metrics, traces

__all__ = ["TELEMETRY", "WARNINGS", "logs", "metrics", "traces"]

DEFAULT = "standard"
CHOICES = (DEFAULT, "fast")


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


# The instrumentation reads this once, before the first span.
os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
try:
    import opentelemetry.propagate  # noqa: F401
except ValueError as error:
    # The API reads OTEL_PROPAGATORS as it is imported, before any settings are read.
    _refuse(f"OTEL_PROPAGATORS: {error}")

TELEMETRY = os.environ.get("TELEMETRY", "").strip() or DEFAULT
if TELEMETRY not in CHOICES:
    _refuse(f"TELEMETRY={TELEMETRY!r}: must be one of {', '.join(CHOICES)}")
# Warnings to log once logging is set up.
WARNINGS: list[str] = []
if TELEMETRY == "fast":
    from otel.fast import private

    if missing := private.missing():
        WARNINGS.append(f"TELEMETRY=fast is not possible: {missing}; standard is used")
        TELEMETRY = DEFAULT
for _name in ("logs", "metrics", "traces"):
    globals()[_name] = import_module(f"otel.{TELEMETRY}.{_name}")
