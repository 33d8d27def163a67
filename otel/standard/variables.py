"""The ``OTEL_*`` variables that this lab checks at start-up; the SDK only warns of a bad value and uses its default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

# The SDK's defaults (5 s, 2048 spans) show a roll late and lose spans under load. 16384 spans are some 30 MB.
MAX_QUEUE_SIZE = 16_384
SCHEDULE_DELAY_MS = 1000
EXPORT_BATCH_SIZE = 512
# Seconds for one export request. A collector that stalls for a minute still accepts what it was sent; a shorter
# timeout, such as the exporter's 10 s, makes the exporter send duplicates.
EXPORT_TIMEOUT = 90.0


class TracingError(ValueError):
    """An ``OTEL_*`` variable has a value that cannot be used; the text is one line that names both."""


@dataclass(frozen=True)
class TraceFile:
    """Where spans go without an OTLP endpoint: ``path``, rotated at ``max_bytes`` with ``backups`` old files kept."""

    path: Path
    max_bytes: int
    backups: int


class Batches(TypedDict):
    """Arguments of a ``BatchSpanProcessor``; sizes in spans."""

    max_queue_size: int
    schedule_delay_millis: int
    max_export_batch_size: int


def batches() -> Batches:
    queue_size = _positive("OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE_SIZE)
    return {
        "max_queue_size": queue_size,
        "schedule_delay_millis": _positive("OTEL_BSP_SCHEDULE_DELAY", SCHEDULE_DELAY_MS),
        "max_export_batch_size": min(queue_size, _positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", EXPORT_BATCH_SIZE)),
    }


def exporter_names() -> list[str]:
    """The exporters that ``OTEL_TRACES_EXPORTER`` names, none for ``none``."""
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp").split(",")]
    for name in names:
        if name not in ("otlp", "console", "none"):
            raise TracingError(f"OTEL_TRACES_EXPORTER={name!r}: must be otlp, console or none")
    return [name for name in names if name != "none"]


def otlp_endpoint() -> str:
    return otlp("ENDPOINT", "")


def otlp_protocol() -> str:
    protocol = otlp("PROTOCOL", "http/protobuf")
    if protocol not in ("http/protobuf", "grpc"):
        raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: must be http/protobuf or grpc")
    return protocol


def otlp_compression() -> str:
    compression = otlp("COMPRESSION", "none").lower().strip()
    if compression not in ("none", "gzip", "deflate"):
        raise TracingError(f"OTEL_EXPORTER_OTLP_COMPRESSION={compression!r}: must be none, gzip or deflate")
    return compression


def otlp_timeout() -> float:
    given = otlp("TIMEOUT", str(EXPORT_TIMEOUT))
    try:
        return float(given)
    except ValueError:
        raise TracingError(f"OTEL_EXPORTER_OTLP_TIMEOUT={given!r}: must be a number of seconds") from None


def otlp(name: str, default: str) -> str:
    """``OTEL_EXPORTER_OTLP_TRACES_<name>``, else ``OTEL_EXPORTER_OTLP_<name>``, else ``default``."""
    environ = os.environ
    return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or default


def _positive(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal() or int(value) == 0:
        raise TracingError(f"{name}={value!r}: must be a whole number above 0")
    return int(value)
