"""Whether the dashboards, rules and alerts query a series, a line or a span."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.cost.queries import LineQuery, MetricQuery, Queries, SpanQuery
from lab.signals import Span, parse_line


@pytest.mark.parametrize(
    ("expression", "name", "labels", "found"),
    [
        ('sum by (job) (rate(rolls_total{job="dice-roller"}[1m]))', "rolls_total", {"job": "dice-roller"}, True),
        ('sum by (job) (rate(rolls_total{job="dice-roller"}[1m]))', "rolls_total", {"job": "frontend"}, False),
        ("rate(rolls_total[1m]) / rate(asked_total[1m])", "asked_total", {"job": "frontend"}, True),
        ("rate(rolls_total[1m])", "rolls", {"job": "frontend"}, False),
        ('rolls_total{die=~"fair|risky"}', "rolls_total", {"die": "risky"}, True),
        ('rolls_total{die=~"fair|risky"}', "rolls_total", {"die": "extreme"}, False),
        ('rolls_total{die!="fair"}', "rolls_total", {"die": "fair"}, False),
        ('rolls_total{die=~"${die:regex}"}', "rolls_total", {"die": "anything"}, True),
        ('rolls_total{handler!~"/a{2}|b"}', "rolls_total", {"handler": "/c"}, True),
        ('{__name__=~"loki_.*|tempo_x_total"}', "tempo_x_total", {}, True),
        ('{__name__=~"loki_.*|tempo_x_total"}', "rolls_total", {}, False),
        ('label_replace(up, "other", "rolls_total", "job", ".*")', "rolls_total", {}, False),
        (
            'rolls_total{instance="somewhere"}',
            "rolls_total",
            {"job": "frontend"},
            True,
        ),  # no service knows its instance
    ],
)
def test_promql(expression: str, name: str, labels: dict[str, str], found: bool) -> None:
    assert MetricQuery.parse(expression, "here").finds(name, labels) is found


def test_labels_that_a_query_names() -> None:
    query = MetricQuery.parse('sum by (le, die) (rate(rolls_bucket{job="frontend"}[1m])) / on (handler) x', "here")
    assert [label for label in ("le", "die", "job", "handler", "status") if query.names(label)] == [
        *("le", "die", "job", "handler")
    ]
    assert MetricQuery.parse('label_values(rolls_total{job="a"}, die)', "here").names("die")


LINE = '{"logger": "frontend", "level": "INFO", "message": "sign in", "usage": true, "event_type": "sign_in", "n": 3}'


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('{service_name="frontend"}', True),
        ('{service_name=~"front.*|x", level="INFO"}', True),
        ('{level=~"ERROR|CRITICAL"}', False),
        ('{service_name="frontend"} | json | usage="true"', True),
        ('{service_name="frontend"} | json | usage="false"', False),
        (
            'sum(count_over_time({service_name="frontend"} | json | usage="true" | event_type="sign_in" [$__auto]))',
            True,
        ),
        ('{service_name="frontend"} | json | missing=~".+"', False),
        ('{service_name="frontend"} |= "sign in"', True),
        ('{service_name="frontend"} |= "sign out"', False),
        ('{service_name="frontend"} |~ "sign (in|out)"', True),
    ],
)
def test_logql(expression: str, found: bool) -> None:
    assert LineQuery.parse(expression, "here").finds(parse_line(LINE), LINE) is found


def span(**changes: Any) -> Span:
    fields: dict[str, Any] = {
        **{"service": "dice-roller", "name": "GET /roll", "trace_id": "", "span_id": "", "parent_id": "", "kind": 2},
        **{"start": 0, "end": 1, "status": 0, "attributes": {"die.type": "fair"}, "events": []},
    }
    return Span(**{**fields, **changes})


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('{resource.service.name="dice-roller" && name=~"GET /roll.*"}', True),
        ('{resource.service.name="frontend" && name=~"GET /roll.*"}', False),
        ('{resource.service.name="frontend"} >> {resource.service.name="dice-roller"}', True),
        ("{status=error}", False),
        ("{duration > 1.5s && kind=server}", True),
        ('{span.die.type="fair"}', True),
        ('{span.die.type="risky"}', False),
        ('{name="other" || status=error}', True),  # not understood, so no span is reported as unused
    ],
)
def test_traceql(expression: str, found: bool) -> None:
    assert SpanQuery.parse(expression, "here").finds(span()) is found


def test_queries_are_read_from_dashboards_and_rules(tmp_path: Path) -> None:
    panels = [
        {"title": "Rolls", "datasource": {"type": "prometheus"}, "targets": [{"expr": "rolls_total"}]},
        {"title": "Lines", "datasource": {"type": "loki"}, "targets": [{"expr": '{service_name="frontend"}'}]},
        {"title": "Map", "datasource": {"type": "tempo"}, "targets": [{"queryType": "serviceMap"}]},
        {"title": "Row"},
    ]
    prometheus = {"type": "prometheus"}
    variable = {
        "type": "query",
        "name": "die",
        "datasource": prometheus,
        "query": {"query": "label_values(v_total, x)"},
    }
    annotation = {"name": "Alerts", "datasource": prometheus, "target": {"expr": "f_total > 0"}}
    dashboard = {"panels": panels, "templating": {"list": [variable]}, "annotations": {"list": [annotation]}}
    (tmp_path / "one.json").write_text(json.dumps(dashboard))
    (tmp_path / "one.yml").write_text("groups: [{rules: [{record: a:b, expr: c_total}, {alert: D, expr: a:b > 1}]}]")
    code = tmp_path / "code"
    code.mkdir()
    (code / "page.py").write_text('QUERY = "rate(e_total[1m])"')
    queries = Queries.read(tmp_path, tmp_path, [code])
    assert [
        name for name in ("rolls_total", "c_total", "a:b", "v_total", "f_total", "e_total") if queries.series(name, {})
    ] == [*("rolls_total", "c_total", "a:b", "v_total", "f_total")]
    assert queries.in_code("e_total")
    assert not queries.in_code("e")
    assert queries.line(parse_line(LINE), LINE) == "list"
    assert (queries.span(span()), queries.span(span(kind=1))) == ("map", "")


def test_the_shipped_dashboards_and_rules_are_understood() -> None:
    """Their queries are understood: no metric that a rule queries is reported as unused."""
    queries = Queries.read()
    for name in ("roll_requests_total", "roll_request_duration_seconds_bucket", "dice_rolls_total"):
        assert queries.series(name, {"job": "dice-roller"}), name
    assert not queries.series("nosuch_total", {})
    usage = '{"logger": "frontend", "level": "INFO", "message": "x", "usage": true, "event_type": "roll"}'
    assert queries.line(parse_line(usage), usage) == "filter"
    assert queries.span(span()) == "query"
