"""Computes the capacity for many users: ``python -m lab.kubernetes.capacity`` prints the tables of docs/kubernetes.md.

Nothing was measured at that scale. Each input has its source beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# --- assumptions ---
USERS = (30, 1_000, 100_000)
ROLLS_PER_USER = 0.1  # a second: a click every ten seconds
TARGET_LOAD = 0.7  # of a CPU; above it the autoscalers add a pod (kubernetes/base)
MIN_PODS = 2  # of the dice-roller, and of the die-service (kubernetes/base)
PAGES = 100  # the open pages of one frontend: MAX_PAGES, docs/settings.md
SAMPLED = 0.05  # the share of healthy traces that is kept (kubernetes/engines/large/collectors.yaml)
RETENTION_DAYS = {"operations": 3, "usage": 30, "traces": 14, "samples": 31}  # Tempo's is its default
SAMPLE_BYTES = 1.5  # Prometheus's documentation: 1 to 2 bytes a sample
SCRAPES = 1 / 5  # a second (compose/prometheus/prometheus.yml)
OBJECT_STORE = 0.023  # US dollars a GB and month: S3 Standard, first tier, us-east-1

# --- measured ---
# docs/performance.md, "What it costs", of 26 November 2026: CPU seconds of the dice-roller and the die-service for one
# /roll over OTLP. Each service is assumed to use half of them.
ROLL_CPU = {"standard": 1_894e-6, "fast": 774e-6}
# docs/kubernetes.md, "Measured": 2,400 rolls through the frontend at stage 6 with all engines.
FRONTEND_CPU = 6_471e-6  # seconds a roll with standard telemetry, including the frontend's start
LINES, LINE_BYTES, LINE_BYTES_STORED = 11, 2_705, 493  # a roll
USAGE_LINES = 1  # of these lines a roll
SPAN_BYTES, SPAN_BYTES_STORED = 2_551, 1_013  # a roll
SERIES = {"dice-roller": 333, "die-service": 199, "frontend": 412}  # a pod
ENGINE_SERIES = 4_458  # of all engines in one replica each, rules and Tempo's metrics included

# --- what one process of an engine can process, by its documentation ---
LOKI_GB_A_DAY = 20  # grafana.com/docs/loki/latest/get-started/deployment-modes
TEMPO_MB_A_SECOND = {"distributor": 10, "live-store": 6, "querier": 1.5}  # …/docs/tempo/next/…/plan/size, lower bounds
DAY = 86_400
GB = 1e9


def rolls(users: int) -> float:
    """Rolls a second."""
    return users * ROLLS_PER_USER


def pods(users: int, telemetry: str) -> int:
    """Pods of the dice-roller; the die-service needs as many."""
    return max(MIN_PODS, math.ceil(rolls(users) * ROLL_CPU[telemetry] / 2 / TARGET_LOAD))


def frontends(users: int) -> int:
    """Processes of the frontend for the rolls alone, without open pages."""
    return math.ceil(rolls(users) * FRONTEND_CPU / TARGET_LOAD)


def pages(users: int) -> int:
    """Processes of the frontend for one open page a user."""
    return math.ceil(users / PAGES)


def stored(users: int, bytes_a_roll: float, days: float) -> float:
    """GB that are stored, if a signal takes so many bytes a roll and is kept for so many days."""
    return rolls(users) * DAY * days * bytes_a_roll / GB


def stored_lines(users: int) -> float:
    """GB of log lines, in both tenants of Loki."""
    usage = LINE_BYTES_STORED * USAGE_LINES / LINES
    operations = LINE_BYTES_STORED - usage
    return stored(users, operations, RETENTION_DAYS["operations"]) + stored(users, usage, RETENTION_DAYS["usage"])


def series(users: int) -> int:
    """Active series, with standard telemetry and frontends for rolls alone."""
    services = pods(users, "standard") * (SERIES["dice-roller"] + SERIES["die-service"])
    return services + frontends(users) * SERIES["frontend"] + ENGINE_SERIES


def samples(users: int) -> float:
    """Samples a second."""
    return series(users) * SCRAPES


def stored_samples(users: int) -> float:
    """GB of samples."""
    return samples(users) * DAY * RETENTION_DAYS["samples"] * SAMPLE_BYTES / GB


def tempo(users: int, share: float) -> str:
    """Processes of each component of Tempo, if this share of the traces is kept."""
    megabytes = rolls(users) * SPAN_BYTES * share / 1e6
    return " + ".join(str(math.ceil(megabytes / most)) for most in TEMPO_MB_A_SECOND.values())


def dollars(users: int, share: float) -> float:
    """US dollars a month to store all signals in object storage, if this share of the traces is kept."""
    traces = stored(users, SPAN_BYTES_STORED * share, RETENTION_DAYS["traces"])
    return OBJECT_STORE * (stored_lines(users) + traces + stored_samples(users))


ROWS: tuple[tuple[str, Callable[[int], str]], ...] = (
    ("rolls a second", lambda users: f"{rolls(users):,.0f}"),
    (
        "pods of the dice-roller, and as many of the die-service: standard, fast",
        lambda users: f"{pods(users, 'standard')}, {pods(users, 'fast')}",
    ),
    ("frontends for the rolls alone, for open pages", lambda users: f"{frontends(users)}, {pages(users):,}"),
    ("lines, GB a day as written", lambda users: f"{stored(users, LINE_BYTES, 1):,.1f}"),
    ("lines kept, GB", lambda users: f"{stored_lines(users):,.1f}"),
    ("spans, MB a second", lambda users: f"{rolls(users) * SPAN_BYTES / 1e6:,.2f}"),
    (
        "traces kept, GB: all, a twentieth",
        lambda users: ", ".join(
            f"{stored(users, SPAN_BYTES_STORED * share, RETENTION_DAYS['traces']):,.1f}" for share in (1, SAMPLED)
        ),
    ),
    (
        "Tempo's distributors + live-stores + queriers: all, a twentieth",
        lambda users: ", ".join(tempo(users, share) for share in (1, SAMPLED)),
    ),
    ("series", lambda users: f"{series(users):,}"),
    ("samples a second", lambda users: f"{samples(users):,.0f}"),
    ("samples kept, GB", lambda users: f"{stored_samples(users):,.1f}"),
    (
        "object storage a month, US dollars: all traces, a twentieth",
        lambda users: ", ".join(f"{dollars(users, share):,.2f}" for share in (1, SAMPLED)),
    ),
)


def table(numbers: Sequence[int] = USERS) -> str:
    """The table in Markdown, a column for each number of users."""
    lines = [f"| | {' | '.join(f'{users:,} users' for users in numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(users) for users in numbers)} |" for name, cell in ROWS]
    return "\n".join(lines) + "\n"


def limits_table() -> str:
    """The table of :func:`limits` in Markdown, the lowest first."""
    rows = sorted(limits().items(), key=lambda one: one[1])
    return "| what is full first | at this number of users |\n|---|---|\n" + "".join(
        f"| {what} | {users:,} |\n" for what, users in rows
    )


def limits() -> dict[str, int]:
    """The number of users at which each resource of the small engines, or of one frontend, is exhausted."""
    per_user = ROLLS_PER_USER * DAY / GB  # rolls a day, over the bytes of a GB
    volume = 10 * 1.0737  # GB: 10Gi of Loki, Tempo and Prometheus each (kubernetes/engines/small)
    return {
        "pages of one frontend": PAGES,
        "CPU of one frontend": int(TARGET_LOAD / FRONTEND_CPU / ROLLS_PER_USER),
        "the volume of Tempo": int(volume / (per_user * SPAN_BYTES_STORED * RETENTION_DAYS["traces"])),
        "the volume of Loki": int(volume / (stored_lines(1_000) / 1_000)),
        "Loki in one process": int(LOKI_GB_A_DAY / (per_user * LINE_BYTES)),
        "ten pods of the dice-roller": int(10 * TARGET_LOAD / (ROLL_CPU["standard"] / 2) / ROLLS_PER_USER),
    }


if __name__ == "__main__":
    print(table())
    print(limits_table())
