"""Builds each dashboard as Grafana's JSON: the six stages, the objectives, the pipeline, the executive overview."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    CustomVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana import executive, pipeline, slo, stages
from grafana.panels import PROMETHEUS

DIRECTORY = Path(__file__).parent / "dashboards"
TAG = "dicelab"
# The defaults of the data source variables, as in grafana/provisioning: variable → (kind, uid, name).
DATA_SOURCES = {
    "prometheus": ("prometheus", "prometheus", "Prometheus"),
    "loki": ("loki", "loki", "Loki"),
    "loki_usage": ("loki", "loki-usage", "Loki (usage)"),
    "tempo": ("tempo", "tempo", "Tempo"),
}
LABELS = {"prometheus": "Metrics", "loki": "Logs", "loki_usage": "Usage logs", "tempo": "Traces"}
# $__rate_interval is four times a query's lowest step: label → that step.
RATE_INTERVALS = {"20s": "5s", "1m": "15s", "2m": "30s", "5m": "75s", "15m": "225s"}


def stage(number: int) -> Dashboard:
    """The dashboard of a stage: the summary, what the stage adds, then the stages before it."""
    name, _ = stages.STAGES[number]
    dashboard = _dashboard(
        f"dice-roller-stage-{number}",
        f"Dice Roller - Stage {number}: {name}",
        f"All telemetry of stage {number}.",
        ("prometheus", "loki", "tempo") if number < 6 else DATA_SOURCES,
    )
    rows = [stages.SUMMARY, *(stages.STAGES[each][1] for each in (number, *range(1, number)))]
    return _fill(dashboard, rows)


def objectives() -> Dashboard:
    dashboard = _dashboard(
        "dice-roller-slo",
        "Dice Roller - Objectives",
        "How well users' rolls are served, compared with the objectives.",
        ("prometheus", "loki", "tempo"),
    )
    return _fill(dashboard, slo.ROWS)


def pipeline_and_saturation() -> Dashboard:
    dashboard = _dashboard(
        "dice-roller-pipeline",
        "Dice Roller - Pipeline and saturation",
        "The telemetry pipelines, their losses, and the saturation of the services.",
        ("prometheus", "loki", "tempo"),
    )
    return _fill(dashboard, pipeline.ROWS)


def for_executives() -> Dashboard:
    dashboard = _dashboard(
        "dice-roller-executive",
        "Dice Roller - Executive overview",
        "One screen, without jargon: what was promised, what went wrong, who rolled and what it cost.",
        DATA_SOURCES,
    )
    return _fill(dashboard.time("now-30d", "now").refresh("1m"), executive.ROWS)


def _dashboard(uid: str, title: str, description: str, data_sources: Iterable[str]) -> Dashboard:
    dashboard = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("10s")
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            DashboardLink("Dashboards")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .annotation(_annotation("Alerts", "red", 'ALERTS{alertstate="firing"}'))
        .annotation(_annotation("Experiments", "purple", "dicelab_experiment_running"))
    )
    for name in data_sources:
        kind, uid, shown = DATA_SOURCES[name]
        dashboard.with_variable(
            DatasourceVariable(name).label(LABELS[name]).type(kind).current(VariableOption(True, shown, uid))
        )
    options = [VariableOption(step == "5s", shown, step) for shown, step in RATE_INTERVALS.items()]
    return dashboard.with_variable(
        QueryVariable("die")
        .label("Die")
        .datasource(PROMETHEUS)
        .query({"query": 'label_values(dice_rolls_total{job="dice-roller"}, die_type)', "refId": "die"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(True, ["All"], ["$__all"]))
    ).with_variable(
        CustomVariable("min_step")
        .label("Rate interval")
        .description("Rates are taken over this long, or longer where the time range is wide.")
        .values(", ".join(f"{shown} : {step}" for shown, step in RATE_INTERVALS.items()))
        .options(options)
        .current(options[0])
    )


def _annotation(name: str, color: str, expression: str) -> AnnotationQuery:
    """A mark in every panel wherever a PromQL expression has a value."""
    # The builder's type allows the query of the built-in annotations only; Grafana accepts any data source's query.
    query: Any = prometheus.Dataquery().expr(expression).ref_id("Anno")
    return AnnotationQuery().name(name).datasource(PROMETHEUS).enable(True).icon_color(color).target(query)


def _fill(dashboard: Dashboard, rows: Iterable[stages.Row]) -> Dashboard:
    number = 0
    for row in rows:
        number += 1
        dashboard.with_row(Row(row.title).id(number))
        for panel in row.panels():
            number += 1
            panel.id(number)
            dashboard.with_panel(panel)
    return dashboard


def files() -> Iterator[tuple[Path, str]]:
    """Every dashboard's file and its content."""
    made = {f"stage-{number}": stage(number) for number in stages.STAGES} | {
        "slo": objectives(),
        "pipeline": pipeline_and_saturation(),
        "executive": for_executives(),
    }
    for name, dashboard in made.items():
        content = json.loads(JSONEncoder().encode(dashboard.build()))
        _remove_obsolete(content)
        yield DIRECTORY / f"{name}.json", json.dumps(content, indent=2, sort_keys=True) + "\n"


def _remove_obsolete(dashboard: dict[str, Any]) -> None:
    """Remove keys that the builders write, which are for Grafana 11, and that newer versions no longer have."""
    for variable in dashboard["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for panel in dashboard["panels"]:
        if panel["type"] == "table":
            panel["options"].pop("footer", None)
