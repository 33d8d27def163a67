"""The dashboard of the objectives that compose/prometheus/rules/slo.yml records, and of their error budgets."""

from __future__ import annotations

from grafana.panels import (
    AMBER,
    GREEN,
    RED,
    Description,
    Panel,
    Signals,
    bars,
    number,
    query,
    timeseries,
)
from grafana.stages import Row

FAILED = Signals('{level="ERROR"} | json', "{status=error}")
SLOW = Signals('{service_name="dice-roller"} | json', '{resource.service.name="dice-roller" && duration>1500ms}')
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
BUDGET = [(0, AMBER), (0.25, GREEN)]
# Multiples of the rate that spends the budget in exactly 30 days; the alerts fire at these.
BURN = [(1, AMBER), (14.4, RED)]


def _objective(sli: str, name: str, budget: str, signals: Signals, good: str) -> list[Panel]:
    return [
        number(
            f"{name} over 30 days",
            Description(
                f"The share of users' rolls that {good}, over 30 days or as long as there are records. The objective"
                f" is 1 less the budget of {budget}.",
                "Below the objective the budget is spent; its burn rates show when that happened.",
            ),
            [query(f"1 - roll:{sli}_errors:ratio_rate30d", name.lower())],
            unit="percentunit",
            signals=signals,
            low_is_bad=True,
            steps=[(1 - 2 * float(budget), AMBER), (1 - float(budget), GREEN)],
            decimals=3,
            width=6,
        ),
        number(
            f"{name}: error budget left",
            Description(
                "The remaining error budget of 30 days. Below zero the objective is missed.",
                "If it shrinks fast, fix the cause before anything else; see the burn alert's runbook.",
            ),
            [query(f"roll:{sli}_error_budget:remaining30d", "left")],
            unit="percentunit",
            signals=signals,
            low_is_bad=True,
            steps=BUDGET,
            decimals=1,
            width=6,
        ),
        timeseries(
            f"{name}: burn rate",
            Description(
                "How many times faster than allowed the budget is spent, over windows of different length. At 1"
                " it lasts exactly 30 days.",
                "The alerts fire when a long and a short window are above their limit: 14.4 for 1h and 5m, 6 for 6h"
                " and 30m, 3 for 1d and 2h, 1 for 3d and 6h.",
            ),
            [query(f"roll:{sli}_errors:ratio_rate{window} / {budget}", window) for window in WINDOWS],
            unit="none",
            signals=signals,
            steps=BURN,
            width=12,
        ),
    ]


def availability() -> list[Panel]:
    return _objective("availability", "Availability", "0.005", FAILED, "did not fail by the service's fault")


def latency() -> list[Panel]:
    return _objective("latency", "Latency", "0.01", SLOW, "were served within 1.5 seconds")


def dice() -> list[Panel]:
    failing = Signals('{service_name="dice-roller",level="ERROR"} | json | die_type=~".+"', FAILED.traces)
    return [
        bars(
            "Designed failures: share of each die's own budget",
            Description(
                "The share of its failure budget that each die used in the last hour. Risky and extreme dice fail by"
                " design; these failures count here and never against availability.",
                "Above 100 % a die fails more often than designed: compare its error_rate with the budget"
                " in compose/prometheus/rules/slo.yml. With few rolls the value jumps.",
            ),
            [query("die:roll_failures:ratio_rate1h / on (die_type) (die:failure_budget:ratio > 0)", "{{die_type}}")],
            unit="percentunit",
            signals=failing,
            steps=[(0.95, AMBER), (1, RED)],
            width=8,
        ),
        timeseries(
            "Requests by outcome",
            Description(
                "Requests for rolls per second, by outcome, at the service that users call. 'error'"
                " burns the availability budget; 'die_failed' is by design.",
                "Many 'abandoned': users do not wait for responses; look at the latency.",
            ),
            [
                query(
                    'sum by (outcome) (rate(roll_requests_total{job="frontend"}[$__rate_interval])) or sum by (outcome)'
                    ' (rate(roll_requests_total{job="dice-roller"}[$__rate_interval])) unless on () up{job="frontend"}',
                    "{{outcome}}",
                )
            ],
            unit="reqps",
            signals=FAILED,
            width=8,
        ),
        number(
            "Alerts firing",
            Description(
                "Alerts that fire now; the red marks in all dashboards show when.",
                "Each names its runbook in docs/runbooks.",
            ),
            [query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing")],
            unit="short",
            signals=FAILED,
            steps=[(1, RED)],
            width=8,
        ),
    ]


ROWS = (Row("Availability", availability), Row("Latency", latency), Row("Dice and alerts", dice))
