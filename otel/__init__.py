"""Telemetry shared by every service: JSON logs, traces and HTTP metrics."""

import sys

try:
    import opentelemetry.propagate  # noqa: F401
except ValueError as error:
    # The API reads OTEL_PROPAGATORS as it is imported, before any settings are read.
    print(f"OTEL_PROPAGATORS: {error}", file=sys.stderr)
    raise SystemExit(2) from None
