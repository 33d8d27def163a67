"""The executive overview: one screen, without jargon."""

from __future__ import annotations

from grafana.panels import (
    AMBER,
    GREEN,
    USAGE,
    Figure,
    Panel,
    Says,
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
DOLLARS_PER_GIGABYTE = 0.50  # of log lines and traces, to take in and to keep
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

# Incidents in the time range: those that began in it, and one that had begun before. Each beginning and each end is a
# change of a series of 0 and 1.
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
            Says(
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
            Says(
                f"Our promise allows {BUDGET_MINUTES} minutes of failure in 30 days. This is what is left of them.",
                "Near zero: postpone changes that are a risk. Below zero: the promise is broken.",
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
            Says(
                "How often somebody was called because something was wrong, and for how many minutes it was.",
                "Ask what was learned from each: the red marks show when they were, the purple ones when we tried a"
                " failure on purpose.",
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
            Says(
                "Different people who signed in and rolled. Rolls without signing in are not counted.",
                "None although people rolled: sign-in comes with stage 6, and is it switched on?",
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
            Says(
                "All rolls of this time range, and those of the same range a week earlier.",
                "Fewer than a week ago: fewer people, or people who gave up; compare with the incidents. The lab's own"
                " test roll once a minute is among them.",
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
            Says(
                f"Computing time at {DOLLARS_PER_CPU_HOUR} $ an hour, log lines and traces at"
                f" {DOLLARS_PER_GIGABYTE:.2f} $ a gigabyte. The prices are an example; put in yours in"
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
            Says(
                "In an incident of this time range, on average: how long people noticed something before somebody was"
                " called, and how long it then took until all was well.",
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
            Says(
                "The share of rolls that worked, over time. Red marks: somebody was called. Purple marks: a failure on"
                " purpose.",
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
