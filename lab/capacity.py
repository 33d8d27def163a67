"""What many users need, computed from measured figures: ``python -m lab.capacity`` prints the table of docs/kubernetes.md.

Nothing here was measured at that size. Each figure below has its source; the limits are those that the engines'
documentation gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# --- assumptions ---
ROLLS_PER_USER = 0.1  # a second: a click every ten seconds
USERS = (30, 1_000, 100_000)
TARGET_LOAD = 0.7  # of a CPU: where the autoscalers add a pod
# Of the traces; the tail sampling of engines/large keeps failed, slow and a twentieth of the other ones. The first two
# are few if nothing is wrong.
KEPT_TRACES = {"small": 1.0, "large": 0.05}
OBJECT_STORE_PRICE = 0.023  # US dollars for a GB and month, S3 Standard

# --- measured ---
# CPU of dice-roller and die-service for one /roll over OTLP, in microseconds: docs/performance.md, "What it costs".
CPU_MICROSECONDS = {"standard": 3_123, "fast": 1_647}
ROLLER_SHARE = 0.5  # of these; the rest is the die-service's
# One run of stage 6 with all engines, 25 November 2026, rolls through the frontend: docs/kubernetes.md, "Measured".
LINE_BYTES = 1_900  # a roll, as written
LINE_COMPRESSION = 9.0  # of Loki's chunks
SPAN_BYTES = 4_000  # a roll, as OTLP arrives at Tempo
SPAN_COMPRESSION = 3.0  # of Tempo's blocks
SPANS = 8  # a roll
SERIES = {"dice-roller": 300, "die-service": 260, "frontend": 300, "engines": 9_000}  # a pod; all engines together
SAMPLE_BYTES = 1.5  # in Prometheus's blocks: its documentation says 1 to 2
SCRAPE_INTERVAL = 5  # seconds: compose/prometheus/prometheus.yml
RETENTION_DAYS = {"lines": 3, "usage": 30, "traces": 14, "samples": 31}


@dataclass(frozen=True)
class Need:
    """What a number of users needs.

    Attributes:
        users: who roll at the same time.
        telemetry: the package that the services use.
        engines: ``small`` or ``large``.
    """

    users: int
    telemetry: str
    engines: str

    @property
    def rolls(self) -> float:
        """A second."""
        return self.users * ROLLS_PER_USER


__all__ = ["Callable", "Iterable", "Need", "math"]
