"""Telemetry shared by every service: traces, JSON logs and metrics.

``from otel import logs, metrics, traces`` gives the modules of one of two rooms with the same interface:
``otel.standard`` uses the packages as their documentation shows them, ``otel.fast`` does the same at a third of the
cost. The variable ``TELEMETRY`` chooses.
"""

import sys

try:
    import opentelemetry.propagate  # noqa: F401
except ValueError as error:
    # The API reads OTEL_PROPAGATORS as it is imported, before any settings are read.
    print(f"OTEL_PROPAGATORS: {error}", file=sys.stderr)
    raise SystemExit(2) from None

from otel.fast import logs, metrics, traces

__all__ = ["logs", "metrics", "traces"]
