"""Samples as evidence: rows of ``/metrics`` pages, in SQL and in PromQL."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.client import DIE_SERVICE, ROLLER
from lab.mystery import promql
from lab.mystery.answer import BadAnswer
from lab.mystery.case import Case, open_metrics, scrapes_of
from lab.mystery.evidence import check_query, separates
from lab.mystery.samples import KEPT_SECONDS, Row, Sampler, SamplesFile, Scrape, recent, window
from lab.supervise.rundir import RunDir
from tests.unit.lab.mystery.cases import BEGAN, ENDED, ONSET, scrapes, truth

DOWN = Case(BEGAN, ENDED, [], [], scrapes(ONSET))
RIGHT = truth(ROLLER, "down")


def page(**values: float) -> str:
    """A page with counters ``rolls_total{die=…}``."""
    lines = "".join(f'rolls_total{{die="{die}"}} {value}\n' for die, value in values.items())
    return f"# TYPE rolls counter\n{lines}# EOF\n"


def test_the_samples_of_a_page_are_those_that_the_standard_parser_finds() -> None:
    registry = CollectorRegistry()
    strange = 'a} "b\\ \n 1 # {c='
    Counter("rolls", "Rolls.", ["die"], registry=registry).labels(strange).inc(3, {"trace_id": "ab"})
    Gauge("broken", "No number.", registry=registry).set(math.nan)
    Histogram("wait", "Waits.", registry=registry).observe(0.3, {"trace_id": "cd"})
    text = generate_latest(registry).decode()
    expected = [
        (family.type, sample.name, sample.labels, str(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    found = [(row.kind, row.name, row.labels, str(row.value)) for row in Sampler().rows(Scrape(1.0, ROLLER, text))]
    assert found == expected
    assert ("counter", "rolls_total", {"die": strange}, "3.0") in found


def test_an_invalid_page_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample: <html>"):
        Sampler().rows(Scrape(1.0, ROLLER, "<html>"))


def test_the_increase_of_a_counter_since_the_previous_scrape() -> None:
    sampler = Sampler()
    pages = (page(fair=5), page(fair=7, new=2), page(fair=3, new=2))
    found = [
        {row.labels["die"]: row.increase for row in sampler.rows(Scrape(at, ROLLER, text))}
        for at, text in enumerate(pages)
    ]
    assert found == [
        {"fair": None},
        {"fair": 2, "new": 2},  # a counter that is new began at 0
        {"fair": 3, "new": 0},  # a counter that was reset begins at 0 again
    ]
    assert {row.increase for row in sampler.rows(Scrape(9.0, DIE_SERVICE, page(fair=5)))} == {None}


def test_a_gauge_has_no_increase() -> None:
    sampler = Sampler()
    for value in (1, 2):
        (row,) = sampler.rows(Scrape(value, ROLLER, f"# TYPE free gauge\nfree {value}\n# EOF\n"))
        assert (row.value, row.increase) == (value, None)


def test_a_row_as_a_line() -> None:
    (row,) = Sampler().rows(Scrape(BEGAN, ROLLER, page(fair=5)))
    assert orjson.loads(row.line()) == {
        "timestamp": "2025-06-15T15:06:40+00:00",
        "service": ROLLER,
        "name": "rolls_total",
        "kind": "counter",
        "labels": {"die": "fair"},
        "value": 5,
        "increase": None,
    }
    assert orjson.loads(replace(row, value=math.nan).line())["value"] is None


def test_the_counters_of_a_window_begin_at_zero_in_the_scrape_before_it() -> None:
    def found(with_those_before: bool) -> list[tuple[float, float]]:
        rows = window(DOWN.scrapes, BEGAN + 10, BEGAN + 17.5, 100 - BEGAN - 10, with_those_before)
        return [(row.at, row.value) for row in rows if row.labels == {"status": "200"}]

    assert found(False) == [(100, 25), (102.5, 50), (105, 75)]
    assert found(True) == [(97.5, 0), *found(False)]


def test_a_window_excludes_metrics_that_grow_while_a_process_runs() -> None:
    assert {row.name for row in window(DOWN.scrapes, BEGAN, ENDED, 0.0)} == {"http_requests_total", "free", "up"}


def test_a_service_that_does_not_answer_is_not_up() -> None:
    other = [replace(one, service=DIE_SERVICE) for one in DOWN.scrapes if one.at < ONSET]
    rows = window([*DOWN.scrapes, *other], ONSET - 5, ONSET + 5, 0.0)
    found = sorted((row.at - ONSET, row.service, row.value) for row in rows if row.name == "up")
    assert found == [
        (at, service, float(service == ROLLER or at < 0))
        for at in (-5.0, -2.5, 0.0, 2.5)
        for service in (ROLLER, DIE_SERVICE)
    ]


def test_only_the_scrapes_that_a_score_needs_are_kept() -> None:
    made = [Scrape(BEGAN + at, ROLLER, "") for at in range(0, 1000, 10)]
    assert recent(made, None, BEGAN + 990) == made
    kept = [round(one.at - BEGAN) for one in recent(made, BEGAN + 300, BEGAN + 990)]
    assert kept == [*range(0, 300 + round(KEPT_SECONDS) + 1, 10), *range(930, 1000, 10)]


# --- the file ---

ROW = Row(BEGAN, ROLLER, "up", "gauge", {}, 1.0)


def test_each_game_starts_a_new_file(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(SamplesFile(RunDir(tmp_path))) as file:
            file.write([ROW])
    assert (tmp_path / "metrics" / "samples.jsonl").read_bytes() == ROW.line()


def test_a_full_disk_loses_samples_of_the_table_only(tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(SamplesFile(RunDir(tmp_path))) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
        try:
            file.write([ROW])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        file.write([ROW])
    assert (tmp_path / "metrics" / "samples.jsonl").read_bytes() == ROW.line()


def test_a_directory_that_cannot_be_made_does_not_end_the_game(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("")
    with closing(SamplesFile(RunDir(tmp_path))) as file:
        file.write([ROW])
    assert (tmp_path / "metrics").read_text() == ""


# --- queries ---


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(increase) FROM samples WHERE name = 'http_requests_total' AND labels['status'] = '503'",
        "SELECT max(value) FROM Samples WHERE labels['status'] = '503'",
        "SELECT avg(value) FROM samples WHERE service = 'dice-roller' AND name = 'free'",
    ],
)
def test_a_query_about_samples_separates(query: str) -> None:
    assert separates(DOWN, RIGHT, query)


def test_a_recorded_case_gives_the_same_rows() -> None:
    def found(given: Iterable[Scrape]) -> list[bytes]:
        return sorted(row.line() for row in window(given, ONSET - 10, ONSET + 10, 0.0))

    assert found(scrapes_of(open_metrics(DOWN.scrapes))) == found(DOWN.scrapes)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT max(value) FROM samples WHERE labels['status'] = '200'",  # a counter that grows all the time
        "SELECT max(value) FROM samples WHERE name = 'process_resident_memory_bytes'",
        "SELECT epoch(max(timestamp)) FROM samples",
    ],
)
def test_a_query_about_samples_cannot_depend_on_the_time(query: str) -> None:
    assert not separates(replace(DOWN, scrapes=scrapes()), RIGHT, query)


def test_only_a_query_that_is_marked_is_promql() -> None:
    assert promql.expression("promql: up") == "up"
    assert promql.expression("PromQL:up\n") == "up"
    assert promql.expression("SELECT 'promql:'") is None


def test_promql_without_prometheus_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadAnswer, match="query: this needs prometheus and promtool on PATH") as caught:
        check_query("promql: up")
    assert "\n" not in str(caught.value)


needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Prometheus is not on PATH"
)


@needs_prometheus
def test_a_promql_query_separates() -> None:
    assert separates(DOWN, RIGHT, 'promql: sum(increase(http_requests_total{status="503",job="dice-roller"}[1m]))')


@needs_prometheus
def test_promql_cannot_depend_on_the_time() -> None:
    windows = [
        list(window(DOWN.scrapes, start, start + 10, 1000 - start, with_those_before=True))
        for start in (BEGAN + 20, ONSET)
    ]
    assert promql.values("time() + sum(http_requests_total)", windows, 1010) == [1110, 1110]


@needs_prometheus
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("promql: sum(", "query: Prometheus: .*parse error"),
        ("promql: up[1m]", "query: the query gives a range of values"),
    ],
)
def test_promql_that_gives_no_number_is_refused_in_one_line(query: str, message: str) -> None:
    with pytest.raises(BadAnswer, match=message) as caught:
        check_query(query)
    assert "\n" not in str(caught.value)


@needs_prometheus
def test_promql_that_gives_several_numbers_is_refused() -> None:
    rows = [Row(1000, service, "free", "gauge", {}, 1.0) for service in (ROLLER, DIE_SERVICE)]
    with pytest.raises(BadAnswer, match="query: one number is expected, not 2"):
        promql.values("free", [rows], 1000)
