"""The views' computations: the map's layout, charts, and the parameters of an address."""

from __future__ import annotations

import math

import pytest

from frontend.browser.render import plural
from frontend.explorer.attributes import attribute
from frontend.explorer.explorer import parse_query
from frontend.explorer.map.view import draw_edges, place_nodes, rate_text
from frontend.explorer.metrics.chart import Series, chart
from frontend.explorer.model import Edge, FieldFilter, LogQuery
from frontend.explorer.sources.figures import Objective


def edge(caller: str, service: str) -> Edge:
    return Edge(caller, service, 1, 0, 1.0, 1.0, "")


def test_a_service_is_placed_to_the_right_of_its_callers() -> None:
    nodes = place_nodes([edge("users", "a"), edge("a", "b"), edge("users", "b"), edge("b", "db"), edge("b", "c")])
    columns = {name: node.x for name, node in nodes.items()}
    assert columns["users"] < columns["a"] < columns["b"] < columns["c"] == columns["db"]
    assert nodes["c"].y != nodes["db"].y


def test_services_in_a_cycle_are_placed() -> None:
    assert set(place_nodes([edge("a", "b"), edge("b", "a"), edge("c", "c")])) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [(120, 60, "2/s"), (30, 60, "30/min"), (1, 3600, "1/h"), (0, 60, "0/h"), (5, None, "")],
)
def test_rates_use_the_shortest_unit_that_avoids_fractions(count: int, seconds: float | None, text: str) -> None:
    assert rate_text(count, seconds) == text


def test_a_chart_line_has_a_gap_for_missing_values() -> None:
    series = [Series("a", "#000", [1.0, 2.0, math.nan, 4.0, 5.0]), Series("b", "#111", [])]
    drawn = chart("Requests", "a second", [0.0, 1.0, 2.0, 3.0, 4.0], series, str, str)
    assert [len(line.parts) for line in drawn.lines] == [2, 0]
    assert [line.latest for line in drawn.lines] == ["5.0", "no value"]
    assert drawn.lines[0].dash != drawn.lines[1].dash
    assert not drawn.empty
    assert chart("Requests", "", [], [Series("a", "#000", [])], str, str).empty


def test_error_budget_decreases_with_failures() -> None:
    assert Objective("", 0.99, 0, 0).remaining == 1
    assert Objective("", 0.99, 1, 200).remaining == pytest.approx(0.5)
    assert Objective("", 0.99, 4, 200).remaining == pytest.approx(-1)


@pytest.mark.parametrize("names", [["http.response.status_code"], ["http.status_code"]])
def test_attributes_are_found_by_their_former_names(names: list[str]) -> None:
    assert attribute(dict.fromkeys(names, 200), "http.response.status_code") == 200
    assert attribute({}, "db.query.text") is None


def test_query_string_keeps_known_parameters() -> None:
    assert parse_query("?tab=logs&tab=map&text=a%26b") == {"tab": "map", "text": "a&b"}
    assert parse_query(None) == {}


def test_logql_quotes_its_values() -> None:
    query = LogQuery(text='a"b', trace_id="0af7", page_files=False, filters=(FieldFilter("die", 'x"', True),))
    assert query.logql() == (
        '{service_name=~".+"} |~ "(?i)a\\"b" != "\\"GET /static/" | trace_id=~"0af7.*" | json | die!="x\\""'
    )


def test_a_number_has_its_noun() -> None:
    assert [plural(count, "line") for count in (0, 1, 2, 12_345)] == [
        "0 lines",
        "1 line",
        "2 lines",
        "12\u202f345 lines",
    ]


def test_lines_below_nodes_have_separate_lanes_and_all_rates_have_one_unit() -> None:
    counts = {("a", "b"): 600, ("b", "c"): 600, ("a", "c"): 1, ("c", "d"): 600, ("b", "d"): 30, ("a", "d"): 2}
    edges = [Edge(*names, count, 0, 1.0, 1.0, "") for names, count in counts.items()]
    lines = draw_edges(edges, place_nodes(edges), 600)
    assert [line.edge.count for line in lines if line.straight] == [600, 600, 600]
    assert len({line.y for line in lines if not line.straight}) == 3
    assert [line.rate for line in lines] == ["60/min", "60/min", "0.1/min", "60/min", "3/min", "0.2/min"]
