"""Measuring the observed telemetry, the projection, and the changes that would save most."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from lab import InputError
from lab.client import Lab
from lab.cost import collect
from lab.cost.agreement import Agreement
from lab.cost.changes import KEPT_SHARE, Changes
from lab.cost.collect import Collector, Files, Run, counters, loki_bytes
from lab.cost.measure import SLOW, LineRecord, Observed, Page, Series, label_shares, measure, unused_series
from lab.cost.otlp import Size, SpanRecord, records
from lab.cost.prices import EXAMPLE, Prices
from lab.cost.queries import LineQuery, MetricQuery, Queries, SpanQuery
from lab.paths import COLLECTOR
from lab.signals import parse_line, parse_samples
from lab.supervise.rundir import RunDir

PAGE = """# TYPE rolls counter
rolls_total{die="fair",outcome="success"} 3.0
rolls_total{die="fair",outcome="error"} 1.0
rolls_total{die="risky",outcome="success"} 4.0
# TYPE seconds histogram
seconds_bucket{le="0.1"} 1.0
seconds_bucket{le="0.5"} 2.0
seconds_bucket{le="1.5"} 3.0
seconds_bucket{le="+Inf"} 4.0
seconds_count 4.0
seconds_sum 5.0
# TYPE lonely gauge
lonely 1.0
# EOF
"""


def trace(number: int, *, status: int = 0, seconds: float = 0.1) -> list[SpanRecord]:
    return records(document(number, status=status, seconds=seconds))


def document(number: int, *, status: int = 0, seconds: float = 0.1) -> dict[str, Any]:
    """A roll as it is exported: a server's span, and one of the roll below it."""

    def span(identifier: int, name: str, kind: int) -> dict[str, Any]:
        return {
            "traceId": f"{number:032x}",
            "spanId": f"{identifier:016x}",
            "name": name,
            "kind": kind,
            "startTimeUnixNano": "1000",
            "endTimeUnixNano": str(1000 + int(seconds * 1e9)),
            "attributes": [{"key": "user_agent.original", "value": {"stringValue": "curl/8" * 20}}],
            "status": {"code": status},
        }

    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "dice-roller"}}]}
    spans = [span(1, "GET /roll", 2), span(2, "roll the die", 1)]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "r"}, "spans": spans}]}]}


def line(number: int, message: str, level: str = "INFO", **fields: Any) -> LineRecord:
    text = json.dumps(
        {"timestamp": "t", "level": level, "logger": "dice-roller", "message": message, "trace_id": f"{number:032x}"}
        | fields
    )
    return LineRecord("dice-roller", text.encode() + b"\n", parse_line(text), message)


@pytest.fixture
def observed() -> Observed:
    """Ten rolls: one failed, one was slow."""
    spans = [*trace(0, status=2), *trace(1, seconds=1.6)]
    for number in range(2, 10):
        spans += trace(number)
    lines = [line(number, "Roll completed", user_agent="curl/8" * 10) for number in range(10)]
    lines += [line(0, "Roll failed", "ERROR")]
    page = Page(Size(len(PAGE), len(gzip.compress(PAGE.encode()))), tuple(parse_samples(PAGE)))
    traces = frozenset(record.span.trace_id for record in spans)
    return Observed(10, traces, tuple(spans), tuple(lines), {"dice-roller": page})


@pytest.fixture
def queries() -> Queries:
    return Queries(
        (MetricQuery.parse('sum by (die) (rolls_total) + seconds_bucket{le="0.5"} + seconds_count', "panel Rolls"),),
        (LineQuery.parse('{service_name="dice-roller"}', "panel Lines"),),
        (SpanQuery.parse('{name="GET /roll"}', "panel Traces"),),
        service_map=True,
    )


PRICES = Prices.read()


def test_bytes_and_series_are_measured(observed: Observed, queries: Queries) -> None:
    measured = measure(observed, queries)
    assert (measured.rolls, measured.traces, measured.kept) == (10, 10, 10)
    assert measured.series == {"dice-roller": 10}
    assert measured.samples_per_second == 2.0
    text = b"".join(record.text for record in observed.lines)
    assert measured.lines == {"dice-roller": Size(len(text), len(gzip.compress(text)))}
    raw, compressed = measured.per_roll(measured.spans)
    assert 200 < compressed * 10 < raw * 10 < sum(record.size for record in observed.spans) + 100
    assert {(one.name, one.count, one.asked) for one in measured.span_names} == {
        ("GET /roll", 10, "query"),
        ("roll the die", 10, ""),
    }
    assert [(one.name, one.count, one.asked) for one in measured.events] == [
        ("Roll completed", 10, "list"),
        ("Roll failed", 1, "list"),
    ]


def test_a_label_contributes_the_series_that_would_not_exist_without_it(observed: Observed, queries: Queries) -> None:
    shares = {share.label: share for share in label_shares(observed.series(), queries)}
    assert (shares["le"].series, shares["le"].without, shares["le"].contributes) == (4, 1, 3)
    assert (shares["die"].contributes, shares["die"].users) == (1, ("panel Rolls",))  # fair and risky, both a success
    assert (shares["outcome"].contributes, shares["outcome"].users) == (1, ())


def test_series_that_no_query_uses_are_found(queries: Queries) -> None:
    series = [Series("dice-roller", name, frozenset(labels.items())) for name, labels in (
        ("rolls_total", {"die": "fair"}), ("seconds_sum", {}), ("lonely", {}), ("lonely", {"a": "b"})
    )]  # fmt: skip
    found = unused_series(series, replace(queries, code='"rate(seconds_sum[1m])"'))
    assert [(one.name, one.series, one.in_code) for one in found] == [("lonely", 2, False), ("seconds_sum", 1, True)]


def test_healthy_traces_neither_failed_nor_were_slow(observed: Observed) -> None:
    assert observed.healthy() == {f"{number:032x}" for number in range(2, 10)}


def test_the_change_to_tail_sampling_has_the_rules_of_the_collector() -> None:
    processors = yaml.safe_load((COLLECTOR / "sampling" / "tail.yaml").read_text())["processors"]
    policies = {policy["type"]: policy[policy["type"]] for policy in processors["tail_sampling"]["policies"]}
    assert policies == {
        "status_code": {"status_codes": ["ERROR"]},
        "latency": {"threshold_ms": SLOW * 1000},
        "probabilistic": {"sampling_percentage": KEPT_SHARE * 100},
    }


def test_the_five_changes_that_save_most_come_first_with_their_savings(observed: Observed, queries: Queries) -> None:
    measured = measure(observed, queries)
    changes = Changes(observed, measured, queries, PRICES).best()
    assert len(changes) == 5
    assert [change.money for change in changes] == sorted((change.money for change in changes), reverse=True)
    assert all(change.loses and change.money > 0 for change in changes)
    everything = {
        change.title.split(" (")[0]: change for change in Changes(observed, measured, queries, PRICES).best(99)
    }
    # Eight of ten traces are healthy, and all have about the same size: nine tenths of eight tenths are saved.
    tail = next(change for title, change in everything.items() if title.startswith("keep 10% of the healthy traces"))
    assert tail.bytes_a_roll == pytest.approx(0.72 * measured.per_roll(measured.spans)[0], rel=0.05)
    assert tail.money < PRICES.month(measured).traces
    unasked = everything["no spans that no panel asks for: roll the die"]
    assert unasked.bytes_a_roll == pytest.approx(sum(r.size for r in observed.spans[1::2]) / 10, rel=0.05)
    attribute = everything["no attribute user_agent.original on spans"]
    assert attribute.bytes_a_roll == pytest.approx(2 * (120 + 19 + 8), rel=0.05)
    field = everything["no field user_agent in lines"]
    assert field.bytes_a_roll == len(', "user_agent": ""') + 60
    series = {title: change.series for title, change in everything.items()}
    assert series["no label outcome"] == 1  # no query names it
    assert "half the buckets of each histogram" not in everything  # a query names the only bound that could be removed
    assert series["no series that nobody asks for: lonely, seconds_sum"] == 2
    assert everything["scrape every 15 s instead of 5 s"].samples_per_second == pytest.approx(10 / 5 - 10 / 15)


def test_a_lab_that_samples_is_not_advised_to(observed: Observed, queries: Queries) -> None:
    changes = Changes(observed, measure(observed, queries), queries, PRICES, sampled=True).best(99)
    assert changes
    assert not [change.title for change in changes if "SAMPLING=tail" in change.title]


def test_half_of_the_buckets_that_no_query_names_are_removed(observed: Observed, queries: Queries) -> None:
    unnamed = replace(queries, metrics=(MetricQuery.parse("seconds_bucket", "panel Rolls"),))
    (change,) = (
        change
        for change in Changes(observed, measure(observed), unnamed, PRICES).best(99)
        if change.title.startswith("half the buckets")
    )
    assert change.series == 1  # 0.5 is removed; the first and +Inf stay


def test_savings_follow_the_prices(observed: Observed, queries: Queries) -> None:
    """With free bytes only metrics can be saved."""
    free = replace(PRICES.traces, received_per_gb=0.0, stored_per_gb_month=0.0)
    prices = replace(PRICES, traces=free, logs=free)
    titles = [change.title for change in Changes(observed, measure(observed, queries), queries, prices).best()]
    assert titles
    assert all("series" in title or "label" in title or "scrape" in title for title in titles), titles


def test_the_projection_multiplies_bytes_days_and_prices(observed: Observed) -> None:
    measured = replace(
        measure(observed),
        spans={"dice-roller": Size(10_000, 1_000)},
        lines={"dice-roller": Size(0, 0)},
        series={"dice-roller": 2_000},
    )
    month = replace(PRICES, rolls_a_day=1e6).month(measured)
    # 1,000 bytes a roll are 30 GB a month; 0.1 GB a day are kept for 14 days.
    assert month.traces == pytest.approx(30 * 0.50 + 1.4 * 0.03)
    assert month.logs == 0
    assert month.metrics == pytest.approx(2 * 6.0 + 400 * 86400 * 31 * 1.5 / 1e9 * 0.03)
    assert month.total == month.traces + month.logs + month.metrics


def test_the_price_file_says_that_it_is_an_example() -> None:
    assert EXAMPLE.read_text().startswith("# AN EXAMPLE.")
    assert PRICES.example
    assert not Prices.read(EXAMPLE).example


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("received_per_gb", "received_per_mb"), "received_per_mb is not known here"),
        (("rolls_a_day = 1_000_000", ""), "has no rolls_a_day"),
        (("0.50", '"0.50"'), "received_per_gb is '0.50', not a finite number from 0"),
        (("retention_days = 14", "retention_days = -1"), "retention_days is -1, not a finite number from 0"),
        (("0.50", "nan"), "received_per_gb is nan, not a finite number from 0"),
        (("0.50", "inf"), "received_per_gb is inf, not a finite number from 0"),
        (("1_000_000", "1" + 400 * "0"), "rolls_a_day is 10+, not a finite number from 0"),
        (("[traces]", "[traces"), "at line"),
    ],
)
def test_a_price_file_with_a_mistake_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(EXAMPLE.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        Prices.read(file)
    with pytest.raises(InputError, match="No such file"):
        Prices.read(tmp_path / "nosuch.toml")


def test_only_complete_lines_written_since_the_start_are_new(tmp_path: Path) -> None:
    log = tmp_path / "frontend.jsonl"
    log.write_text("old\n")
    files = Files(tmp_path)
    with log.open("a") as file:
        file.write("new\nhalf")
    log.rename(tmp_path / "frontend.jsonl.1")  # rotated
    log.write_text("newest\n")
    (tmp_path / "frontend.stderr").write_text("other\n")
    assert list(files.new()) == [("frontend", b"new\n"), ("frontend", b"newest\n")]


def test_the_bytes_of_lines_are_counted_as_loki_counts_them() -> None:
    """The text without its newline, and the structured metadata: in chunks, equal values of a stream once."""
    one = b'{"level": "INFO", "trace_id": "abcd", "span_id": "ef", "n": 1}\n'
    other = b'{"level": "ERROR", "trace_id": "abcd", "span_id": "ef", "n": 1}\n'
    lines = [("frontend", text) for text in (one, one, other, b"Traceback\n")]
    texts = 2 * len(one) + len(other) - 3 + len("Traceback")
    assert loki_bytes(lines) == (
        4,
        texts + 3 * (len("trace_idabcd") + len("span_idef")),
        texts + 3 * 2 * 8 + 2 * len("abcdef"),  # two streams
    )


async def test_only_the_named_counters_of_a_page_are_read() -> None:
    page = 'spans_total{tenant="a"} 2\nspans_total{tenant="b,}"} 3e+00\nspans_total_created 9\nother{x="y" broken\n'
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=page)

    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server, ClientSession() as session:
        url = str(server.make_url("/metrics"))
        assert await counters(session, url, ["spans_total"]) == {"spans_total": 5.0}
    async with ClientSession() as session:
        assert await counters(session, url, ["spans_total"]) == {}  # it no longer responds


def test_agreement_is_the_engines_figure_in_percent_of_ours() -> None:
    assert Agreement("series", 200, "Prometheus", 190).percent == 95
    assert Agreement("series", 0, "Prometheus", 0).percent == 100
    assert Agreement("series", 0, "Prometheus", 5).percent == 0


# --- waiting for spans ---


async def test_spans_that_lines_name_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while without new spans does not mean that all have arrived: a busy machine delays a batch of spans."""
    monkeypatch.setattr(collect, "POLL_FILES", 0.01)
    directory = RunDir(tmp_path)
    directory.make()
    lab = Lab(directory, "")
    collector = Collector(lab)
    (directory.logs / "dice-roller.jsonl").write_bytes(line(1, "GET /roll 200", span_id=f"{1:016x}").text)
    observing = asyncio.create_task(collector.observe(Run(rolls=1, traces={f"{1:032x}"})))
    done, _ = await asyncio.wait([observing], timeout=0.3)
    assert not done
    with (directory.traces / "dice-roller.jsonl").open("w") as file:
        file.write(json.dumps(document(1)) + "\n")
    observed = await asyncio.wait_for(observing, 10)
    assert [record.span.name for record in observed.spans] == ["GET /roll", "roll the die"]


async def test_waiting_for_missing_spans_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of traces that are not sampled never arrive."""
    monkeypatch.setattr(collect, "POLL_FILES", 0.01)
    monkeypatch.setattr(collect, "QUIET_FILES", 0.1)
    directory = RunDir(tmp_path)
    directory.make()
    collector = Collector(Lab(directory, ""))
    (directory.logs / "dice-roller.jsonl").write_bytes(line(1, "GET /roll 200", span_id=f"{1:016x}").text)
    observed = await asyncio.wait_for(collector.observe(Run(rolls=1, traces={f"{1:032x}"})), 10)
    assert (len(observed.spans), len(observed.lines)) == (0, 1)
