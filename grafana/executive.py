"""The executive overview: one screen, without jargon."""

from __future__ import annotations

from grafana.panels import (
    AMBER,
    GREEN,
    USAGE,
    Description,
    Figure,
    Panel,
    Signals,
    log_total,
    number,
    query,
    summary,
    timeseries,
    total,
)
from grafana.stages import Row

HEIGHT = 6
# An example: put in what you pay.
DOLLARS_PER_CPU_HOUR = 0.05
DOLLARS_PER_GIGABYTE = 0.50  # of log lines and traces, to receive and to store
BUDGET_MINUTES = 216  # 0.5 % of 30 days, as in compose/prometheus/rules/slo.yml

ALL = Signals('{level=~"ERROR|CRITICAL"} | json', "{status=error}")
USERS = Signals(
    '{service_name="frontend"} | json | usage="true" | event_type="roll"',
    '{resource.service.name="frontend"}',
    USAGE,
)
SERVICES = 'job=~"dice-roller|frontend|die-service"'
NO_ROLLS = "Nobody has rolled in this time range."
NO_INCIDENT = "There was no incident in this time range."

# The number of incidents in the time range, including one that had begun before it. The series is 1 during an incident,
# else 0, so each incident makes two changes: its beginning and its end.
INCIDENTS = (
    "(changes(incident:active[$__range]) + incident:active"
    " + (incident:active offset $__range or incident:active * 0)) / 2"
)


def _seconds(series: str) -> str:
    """How long a series of incidents.yml was 1 in the time range, in seconds."""
    return f"sum_over_time({series}[$__range]) * 5"


def _rolls(offset: str = "") -> str:
    return f'sum(increase(dice_rolls_total{{job="dice-roller"}}[$__range]{offset}))'


def _bytes(counter: str) -> str:
    return f"(sum(increase({counter}[$__range])) or vector(0))"


def _cost() -> str:
    cpu_hours = f"sum(increase(process_cpu_seconds_total{{{SERVICES}}}[$__range])) / 3600"
    telemetry = (
        f"{_bytes('loki_distributor_bytes_received_total')} + {_bytes('tempo_distributor_bytes_received_total')}"
    )
    dollars = f"{cpu_hours} * {DOLLARS_PER_CPU_HOUR} + ({telemetry}) / 1e9 * {DOLLARS_PER_GIGABYTE}"
    return f"1000 * ({dollars}) / ({_rolls()} > 0)"


def promise() -> list[Panel]:
    panels: list[Panel] = [
        summary(
            "Promise kept this month",
            Description(
                "Of all rolls of the last 30 days: how many worked, of which we promise 99.5 %, and how many were ready"
                " within 1.5 seconds, of which we promise 99 %. Green: kept.",
                "Red: broken. The dashboard Objectives shows when it happened.",
            ),
            [
                Figure(
                    query("1 - roll:availability_errors:ratio_rate30d", "worked"),
                    "percentunit",
                    steps=[(0.995, GREEN)],
                    low_is_bad=True,
                    decimals=2,
                ),
                Figure(
                    query("1 - roll:latency_errors:ratio_rate30d", "in time"),
                    "percentunit",
                    steps=[(0.99, GREEN)],
                    low_is_bad=True,
                    decimals=2,
                ),
            ],
            signals=ALL,
            width=8,
        ),
        number(
            "Minutes of failure left this month",
            Description(
                f"Our promise allows {BUDGET_MINUTES} minutes of failure in 30 days. This is how many are left.",
                "Near zero: postpone risky changes. Below zero: the promise is broken.",
            ),
            [query(f"roll:availability_error_budget:remaining30d * {BUDGET_MINUTES}", "left")],
            unit="m",
            signals=ALL,
            low_is_bad=True,
            steps=[(0, AMBER), (BUDGET_MINUTES / 4, GREEN)],
            decimals=0,
        ),
        summary(
            "Incidents",
            Description(
                "How often somebody was called because something was wrong, and how many minutes that lasted in all.",
                "Ask what was learned from each. Red marks show when incidents happened; purple marks show when we"
                " caused a failure on purpose.",
            ),
            [
                Figure(total(INCIDENTS, "incidents"), "short", steps=[(1, AMBER)], decimals=0),
                Figure(total(f"{_seconds('incident:active')} / 60", "minutes lost"), "m", steps=[(1, AMBER)]),
            ],
            signals=ALL,
            width=8,
        ),
        number(
            "People who rolled",
            Description(
                "Different people who signed in and rolled. Rolls without signing in are not counted.",
                "None although people rolled: is sign-in switched on? It comes with stage 6.",
            ),
            [log_total(f"count(sum by (username) (count_over_time({USERS.logs} [$__range])))", "people")],
            idle="Nobody who had signed in has rolled in this time range.",
            unit="short",
            signals=USERS,
            width=6,
            datasource=USAGE,
        ),
        number(
            "Rolls against the week before",
            Description(
                "All rolls of this time range, and those of the same range a week earlier.",
                "Fewer than a week ago: fewer people came, or people gave up; compare with the incidents. Both numbers"
                " include the lab's own test roll, one a minute.",
            ),
            [
                total(_rolls(), "now"),
                total(f"{_rolls(' offset 1w')} or vector(0)", "a week before"),
            ],
            idle=NO_ROLLS,
            unit="short",
            signals=ALL,
            width=6,
            decimals=0,
        ),
        number(
            "Cost per 1,000 rolls",
            Description(
                f"Computing time at {DOLLARS_PER_CPU_HOUR} dollars an hour, log lines and traces at"
                f" {DOLLARS_PER_GIGABYTE:.2f} dollars a gigabyte. The prices are an example; set yours in"
                " grafana/executive.py.",
                "Rising: fewer rolls for the same machines, or more lines and traces for each roll.",
            ),
            [total(_cost(), "cost")],
            idle=NO_ROLLS,
            unit="currencyUSD",
            signals=ALL,
            width=6,
            decimals=4,
        ),
        summary(
            "Time to detect, time to recover",
            Description(
                "The averages over the incidents of this time range: how long people were affected before somebody was"
                " called, and how long it then took until everything worked again.",
                "Slow to detect: an alert is missing. Slow to recover: practise it with dicelab chaos.",
            ),
            [
                Figure(total(f"{_seconds('incident:undetected')} / ({INCIDENTS} > 0)", "detect"), "s"),
                Figure(total(f"{_seconds('incident:active')} / ({INCIDENTS} > 0)", "recover"), "s"),
            ],
            signals=ALL,
            width=6,
        ),
    ]
    for panel in panels:
        panel.height(HEIGHT)
    panels[-1].no_value(NO_INCIDENT)
    return [
        *panels,
        timeseries(
            "Rolls that worked",
            Description(
                "The share of rolls that worked, over time. Red marks: somebody was called. Purple marks: we caused a"
                " failure on purpose.",
                "A dip without a red mark: nobody was called although people noticed.",
            ),
            [query("roll:served:ratio_rate1m", "worked")],
            idle=NO_ROLLS,
            unit="percentunit",
            signals=ALL,
            width=24,
            highest=1,
        ),
    ]


ROWS = (Row("The service", promise),)
