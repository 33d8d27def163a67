"""The look of each kind of panel, its queries and its links; the content is in ``stages.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, TypeVar
from urllib.parse import quote

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    logs,
    loki,
    nodegraph,
    prometheus,
    stat,
    table,
    tempo,
    text,
)
from grafana_foundation_sdk.builders import timeseries as series
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.loki import LokiQueryType
from grafana_foundation_sdk.models.tempo import SearchTableType, TempoQueryType
from grafana_foundation_sdk.models.text import TextMode

HEIGHT = 8
# The text of a panel whose queries find nothing.
IDLE = "No rolls in this time range. Roll a die."
# Each is a variable of the dashboard, named after its default data source.
PROMETHEUS = DataSourceRef("prometheus", "${prometheus}")
LOKI = DataSourceRef("loki", "${loki}")
USAGE = DataSourceRef("loki", "${loki_usage}")
TEMPO = DataSourceRef("tempo", "${tempo}")
# The dashboard's variable "Rate interval" sets this lower limit of a query's step; $__rate_interval is four times it.
MIN_STEP = "$min_step"

GREEN, AMBER, RED = "green", "orange", "red"
Steps = Sequence[tuple[float, str]]  # from this value on, this colour; below the first, green


Panel = series.Panel | stat.Panel | bargauge.Panel | logs.Panel | table.Panel | nodegraph.Panel | text.Panel
P = TypeVar("P", series.Panel, stat.Panel, bargauge.Panel, logs.Panel, table.Panel, nodegraph.Panel, text.Panel)
Query = prometheus.Dataquery | loki.Dataquery | tempo.TempoQuery


@dataclass(frozen=True)
class Description:
    """A panel's description: what it shows, and what to do when it looks wrong."""

    shows: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.shows}\n\n**Looks wrong?** {self.wrong}"


@dataclass(frozen=True)
class Signals:
    """Where a panel's data links lead: to the logs (LogQL) and the traces (TraceQL) behind its numbers.

    Attributes:
        destination: the data source of the logs.
    """

    logs: str
    traces: str
    destination: DataSourceRef = field(default_factory=lambda: LOKI)


def signals_of(service: str, spans: str = "") -> Signals:
    """The logs and traces of one service; ``spans`` narrows the traces by a TraceQL condition."""
    condition = f" && {spans}" if spans else ""
    return Signals(f'{{service_name="{service}"}} | json', f'{{resource.service.name="{service}"{condition}}}')


# --- queries ---


def query(expression: str, legend: str, *, exemplars: bool = False) -> prometheus.Dataquery:
    """PromQL over the dashboard's time range; ``exemplars`` adds dots for single requests, linked to their traces."""
    target = prometheus.Dataquery().expr(expression).legend_format(legend).range().interval(MIN_STEP)
    return target.exemplar(True) if exemplars else target


def total(expression: str, legend: str) -> prometheus.Dataquery:
    """PromQL at the end of the time range, for one number over all of it."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).instant()


def log_query(expression: str, legend: str = "") -> loki.Dataquery:
    """LogQL over the dashboard's time range."""
    return loki.Dataquery().expr(expression).legend_format(legend).query_type(LokiQueryType.RANGE).max_lines(100)


def log_total(expression: str, legend: str) -> loki.Dataquery:
    """LogQL at the end of the time range."""
    return loki.Dataquery().expr(expression).legend_format(legend).query_type(LokiQueryType.INSTANT)


def counted(selector: str) -> str:
    """The exact increase of a counter in the time range; ``increase`` would extrapolate.

    Its value at the end minus its value at the start. The start counts as 0 if the counter did not exist yet (its first
    scrape may have found it above zero), or if its process has restarted since.
    """
    end = f"last_over_time({selector}[$__range])"
    return f"({end} - ({selector} offset $__range unless resets({selector}[$__range]) > 0 or {end} * 0))"


def quantiles(metric: str, matchers: str) -> list[prometheus.Dataquery]:
    """p50, p95 and p99 of a histogram, with exemplars."""
    return [
        query(
            f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{matchers}}}[$__rate_interval])))",
            name,
            exemplars=True,
        )
        for q, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
    ]


def per_bucket(metric: str, matchers: str, bounds: Sequence[tuple[str, str]]) -> list[prometheus.Dataquery]:
    """How many observations fell into each bucket of a histogram, not cumulative.

    Args:
        bounds: the upper bound (the value of ``le``) and the name of each bucket, in ascending order. The first bucket
            has no lower bound.
    """
    targets, below = [], ""
    for bound, name in bounds:
        selector = f'{metric}_bucket{{{matchers},le="{bound}"}}'
        up_to = f"sum({counted(selector)})"
        targets.append(total(f"{up_to} - {below}" if below else up_to, name))
        below = up_to
    return targets


# --- links ---


def explore(datasource: DataSourceRef, target: dict[str, object]) -> str:
    """The URL of a query in Explore, over the dashboard's time range."""
    pane = {
        "datasource": datasource.uid,
        "queries": [{"refId": "A", "datasource": {"type": datasource.type_val, "uid": datasource.uid}, **target}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = json.dumps({"a": pane}, separators=(",", ":"))
    # Grafana replaces variables in the URL only where they are not percent-encoded.
    parts = re.split(r"(\$\{\w+(?::\w+)?\})", panes)
    return "/explore?schemaVersion=1&orgId=1&panes=" + "".join(
        part if part.startswith("${") else quote(part, safe="") for part in parts
    )


def _links(signals: Signals) -> list[Builder[Any]]:
    def link(title: str, address: str) -> DashboardLink:
        return DashboardLink(title).type(DashboardLinkType.LINK).url(address).target_blank(True)

    return [
        link("Logs of this time range", explore(signals.destination, {"expr": signals.logs, "queryType": "range"})),
        link(
            "Traces of this time range",
            explore(TEMPO, {"query": signals.traces, "queryType": "traceql", "limit": 20, "tableType": "traces"}),
        ),
    ]


# --- panels ---


def _thresholds(steps: Steps) -> ThresholdsConfig:
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, GREEN), *(Threshold(value, color) for value, color in steps)])
    )


def _panel(
    panel: P,
    title: str,
    description: Description,
    datasource: DataSourceRef,
    width: int,
    idle: str,
    height: int = HEIGHT,
) -> P:
    panel.title(title).description(str(description)).datasource(datasource).span(width).height(height).no_value(idle)
    return panel


def _add(panel: P, targets: Sequence[Query]) -> P:
    for name, target in zip(ascii_uppercase, targets, strict=False):
        panel.with_target(target.ref_id(name))
    return panel


def timeseries(
    title: str,
    description: Description,
    targets: Sequence[Query],
    *,
    unit: str,
    signals: Signals,
    width: int = 8,
    steps: Steps = (),
    bars: bool = False,
    highest: float | None = None,
    idle: str = IDLE,
    datasource: DataSourceRef = PROMETHEUS,
) -> series.Panel:
    """Values over time, a line each; ``bars`` stacks them. ``steps`` are drawn as dashed lines."""
    panel = _panel(series.Panel(), title, description, datasource, width, idle)
    panel.unit(unit).min(0).data_links(_links(signals)).thresholds(_thresholds(steps))
    panel.color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel.line_width(2).fill_opacity(60 if bars else 8).show_points(look.VisibilityMode.AUTO)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(look.LegendDisplayMode.TABLE)
        .placement(look.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    if bars:
        panel.draw_style(look.GraphDrawStyle.BARS)
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL))
    if steps:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(look.GraphThresholdsStyleMode.DASHED))
    if highest is not None:
        panel.max(highest)
    return _add(panel, targets)


def number(
    title: str,
    description: Description,
    targets: Sequence[Query],
    *,
    unit: str,
    signals: Signals,
    steps: Steps = (),
    low_is_bad: bool = False,
    width: int = 8,
    decimals: int | None = None,
    value_texts: dict[str, tuple[str, str]] | None = None,
    idle: str = IDLE,
    datasource: DataSourceRef = PROMETHEUS,
) -> stat.Panel:
    """One big number, or a few. ``low_is_bad`` starts at red; ``value_texts`` maps a value to (text, colour)."""
    panel = _panel(stat.Panel(), title, description, datasource, width, idle)
    base = RED if low_is_bad else GREEN
    panel.thresholds(
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, base), *(Threshold(value, color) for value, color in steps)])
    )
    panel.unit(unit).data_links(_links(signals)).color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
    panel.graph_mode(look.BigValueGraphMode.AREA).color_mode(look.BigValueColorMode.VALUE)
    panel.text_mode(look.BigValueTextMode.VALUE_AND_NAME if len(targets) > 1 else look.BigValueTextMode.AUTO)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if decimals is not None:
        panel.decimals(decimals)
    if value_texts:
        results = {value: ValueMappingResult(text=shown, color=color) for value, (shown, color) in value_texts.items()}
        panel.mappings([ValueMap(options=results)])
    return _add(panel, targets)


@dataclass(frozen=True)
class Figure:
    """One number of a summary, with its thresholds.

    Attributes:
        steps: from this value on, this colour.
        low_is_bad: below the first step it is red, else green.
    """

    query: prometheus.Dataquery
    unit: str
    steps: Steps = ()
    low_is_bad: bool = False
    decimals: int = 1


def summary(
    title: str, description: Description, figures: Sequence[Figure], *, signals: Signals, width: int = 12
) -> stat.Panel:
    """A few numbers with different units, side by side."""
    panel = number(title, description, [figure.query for figure in figures], unit="short", signals=signals, width=width)
    panel.height(HEIGHT // 2)
    for name, figure in zip(ascii_uppercase, figures, strict=False):
        steps: list[Mapping[str, object]] = [{"value": None, "color": RED if figure.low_is_bad else GREEN}]
        steps += [{"value": value, "color": color} for value, color in figure.steps]
        panel.override_by_query(
            name,
            [
                DynamicConfigValue("unit", figure.unit),
                DynamicConfigValue("decimals", figure.decimals),
                DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}),
            ],
        )
    return panel


def bars(
    title: str,
    description: Description,
    targets: Sequence[Query],
    *,
    unit: str,
    signals: Signals,
    width: int = 8,
    steps: Steps = (),
    decimals: int | None = None,
    idle: str = IDLE,
) -> bargauge.Panel:
    """A bar for each value, to compare them."""
    panel = _panel(bargauge.Panel(), title, description, PROMETHEUS, width, idle)
    panel.unit(unit).min(0).data_links(_links(signals)).thresholds(_thresholds(steps))
    color = FieldColorModeId.THRESHOLDS if steps else FieldColorModeId.PALETTE_CLASSIC_BY_NAME
    panel.color_scheme(FieldColor().mode(color))
    panel.orientation(look.VizOrientation.HORIZONTAL).display_mode(look.BarGaugeDisplayMode.BASIC)
    panel.value_mode(look.BarGaugeValueMode.TEXT).show_unfilled(True)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if decimals is not None:
        panel.decimals(decimals)
    return _add(panel, targets)


def lines(
    title: str,
    description: Description,
    expression: str,
    *,
    width: int = 12,
    idle: str = "No such lines in this time range.",
    datasource: DataSourceRef = LOKI,
) -> logs.Panel:
    """Log lines, newest first; a line unfolds into its fields, and its trace id links to the trace."""
    panel = _panel(logs.Panel(), title, description, datasource, width, idle, HEIGHT + 2)
    panel.show_time(True).wrap_log_message(True).enable_log_details(True)
    panel.sort_order(look.LogsSortOrder.DESCENDING).dedup_strategy(look.LogsDedupStrategy.NONE)
    return _add(panel, [log_query(expression)])


def traces(title: str, description: Description, traceql: str, *, width: int = 12) -> table.Panel:
    """The newest traces that a TraceQL query finds; a click opens one."""
    panel = _panel(table.Panel(), title, description, TEMPO, width, "No such traces in this time range.", HEIGHT + 2)
    panel.show_header(True).cell_height(look.TableCellHeight.SM)
    search = tempo.TempoQuery().query_type(TempoQueryType.TRACEQL).query(traceql).limit(20).filters([])
    return _add(panel, [search.table_type(SearchTableType.TRACES)])


def service_map(title: str, description: Description, *, width: int = 12) -> nodegraph.Panel:
    """Which service calls which, from Tempo's service graph."""
    panel = _panel(
        nodegraph.Panel(),
        title,
        description,
        TEMPO,
        width,
        "No service has called another in this time range.",
        HEIGHT + 2,
    )
    graph = tempo.TempoQuery().query_type(TempoQueryType.SERVICE_MAP).service_map_query("{}").limit(20).filters([])
    return _add(panel, [graph])


def text_panel(title: str, description: Description, markdown: str, *, width: int = 12) -> text.Panel:
    panel = text.Panel().title(title).description(str(description)).span(width).height(HEIGHT + 2)
    return panel.mode(TextMode.MARKDOWN).content(markdown)
