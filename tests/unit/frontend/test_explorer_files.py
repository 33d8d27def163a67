"""The explorer's source of files: appended, rotated, half-written and broken lines; and the arrangement of a trace."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from frontend.explorer.index import process as index
from frontend.explorer.model import FieldFilter, LogQuery, SourceError, Span, TraceQuery, duration_text
from frontend.explorer.sources import calls
from frontend.explorer.sources.figures import faces_of, quantile
from frontend.explorer.sources.files import Files
from frontend.explorer.trace.arrange import arrange

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    for folder in ("logs", "traces"):
        (tmp_path / folder).mkdir()
    files = Files(tmp_path)
    yield files
    await files.close()


def line(message: str, second: int = 0, **fields: Any) -> str:
    document = {
        "timestamp": f"2026-01-02T03:04:{second:02d}.000Z",
        "level": "INFO",
        "message": message,
        "logger": "dice-roller",
        **fields,
    }
    return json.dumps(document) + "\n"


def export(*spans: dict[str, Any], service: str = "dice-roller") -> str:
    """A line as the file exporter writes it."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scope = {"scope": {"name": "dicelab"}, "spans": list(spans)}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}) + "\n"


def otlp(number: int, parent: int = 0, start: int = 0, trace_id: str = TRACE, **more: Any) -> dict[str, Any]:
    return {
        "traceId": trace_id,
        "spanId": f"{number:016x}",
        **({"parentSpanId": f"{parent:016x}"} if parent else {}),
        "name": f"span {number}",
        "kind": 2,
        "startTimeUnixNano": str(1_700_000_000_000_000_000 + start),
        "endTimeUnixNano": str(1_700_000_000_000_001_000 + start),
        "attributes": [],
        "status": {},
        **more,
    }


async def messages(files: Files, **query: Any) -> list[str]:
    return [found.message for found in await files.lines(LogQuery(**query))]


async def test_missing_files_are_not_an_error(files: Files, tmp_path: Path) -> None:
    assert await files.traces(TraceQuery()) == []
    assert await messages(files) == []
    nowhere = Files(tmp_path / "nowhere")
    assert await nowhere.trace(TRACE) == []
    await nowhere.close()


async def test_lines_are_read_once_complete(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "dice-roller.jsonl"
    path.write_text(line("one", 1) + line("two", 2)[:40])
    assert await messages(files) == ["one"]
    path.write_text(line("one", 1) + line("two", 2) + line("three", 3))
    assert await messages(files) == ["three", "two", "one"]


async def test_rotation_neither_loses_nor_duplicates_lines(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "dice-roller.jsonl"
    path.write_text(line("one", 1))
    assert await messages(files) == ["one"]
    path.rename(path.with_name("dice-roller.jsonl.1"))
    path.write_text(line("two", 2))
    assert await messages(files) == ["two", "one"]
    path.with_name("dice-roller.jsonl.1").unlink()
    # A file that may reuse the inode of the deleted one.
    path.rename(path.with_name("dice-roller.jsonl.1"))
    path.write_text(line("three", 3))
    assert await messages(files) == ["three", "two"]
    path.write_text(line("4", 4))  # truncated and rewritten, as the lab never does
    assert await messages(files) == ["4", "two"]


async def test_lines_that_are_not_json_are_kept_as_text(files: Files, tmp_path: Path) -> None:
    (tmp_path / "logs" / "frontend.jsonl").write_bytes(
        b'Traceback <b>x</b>\n[1, 2]\n"text"\n{"level": 5}\n\n' + line("fine").encode() + b'caf\xe9 "quoted\n'
    )
    found = await files.lines(LogQuery())
    texts = {entry.message or str(entry.fields) for entry in found}
    assert {"Traceback <b>x</b>", "[1, 2]", "fine"} <= texts
    assert {entry.service for entry in found if entry.message != "fine"} == {"frontend"}
    assert await messages(files, level="unknown", text="TRACEBACK") == ["Traceback <b>x</b>"]


async def test_every_filter_finds_its_lines(files: Files, tmp_path: Path) -> None:
    (tmp_path / "logs" / "dice-roller.jsonl").write_text(
        line("a", 1, trace_id=TRACE, span_id="1" * 16)
        + line("b", 2, level="ERROR")
        + line("c", 3, trace_id="f" * 32, die="100%_'\"")
    )
    assert await messages(files, trace_id=TRACE) == ["a"]
    assert await messages(files, span_id="1" * 16) == ["a"]
    assert await messages(files, level="ERROR") == ["b"]
    assert await messages(files, service="die-service") == []
    assert await messages(files, text="100%_'") == ["c"]
    assert await messages(files, text="%") == ["c"]
    assert await messages(files, limit=2) == ["c", "b"]
    assert await messages(files, trace_id=TRACE[:8]) == ["a"]
    assert await messages(files, filters=(FieldFilter("die", "100%_'\""),)) == ["c"]
    assert await messages(files, filters=(FieldFilter("die", "100%_'\"", exclude=True),)) == ["b", "a"]
    assert await messages(files, filters=(FieldFilter("level", "ERROR"), FieldFilter("x'; DROP TABLE logs", ""))) == [
        "b"
    ]
    second = 1_000_000_000
    start = 1767323045 * second  # 2026-01-02T03:04:05Z
    assert await messages(files, since=start - 3 * second, until=start - 2 * second) == ["b"]
    volume = await files.volume(LogQuery(), 2 * second)
    assert sorted((entry.start // second - 1767323040, entry.level, entry.count) for entry in volume) == [
        (0, "INFO", 1),
        (2, "ERROR", 1),
        (2, "INFO", 1),
    ]


async def test_lines_about_static_files_can_be_excluded(files: Files, tmp_path: Path) -> None:
    (tmp_path / "logs" / "frontend.jsonl").write_text(line("GET /static/js/bokeh.min.js 200") + line("GET / 200", 1))
    assert await messages(files, page_files=False) == ["GET / 200"]
    assert len(await messages(files)) == 2


async def test_calls_are_counted_by_caller_and_service(files: Files, tmp_path: Path) -> None:
    query = {"key": "db.system", "value": {"stringValue": "postgresql"}}
    failed = {"code": 2, "message": "it failed"}
    (tmp_path / "traces" / "frontend.jsonl").write_text(
        export(otlp(1), otlp(2, parent=1, kind=3), otlp(9, name="GET /static/{path}"), service="frontend")
    )
    (tmp_path / "traces" / "dice-roller.jsonl").write_text(
        export(otlp(3, parent=2, status=failed), otlp(4, parent=3, kind=3, attributes=[query]))
    )
    edges = {(edge.caller, edge.service): edge for edge in await files.edges(0, 0)}
    assert {pair: (edge.count, edge.failed) for pair, edge in edges.items()} == {
        ("", "frontend"): (1, 0),
        ("frontend", "dice-roller"): (1, 1),
        ("dice-roller", "postgresql"): (1, 0),
    }
    assert edges["", "frontend"].p95 == 1000
    cells = sorted((cell.service, cell.bucket, cell.count, cell.failed) for cell in await files.heat(0, 0, 10**9))
    assert cells == [("dice-roller", 0, 1, 1), ("frontend", 0, 1, 0)]
    # The same result from spans, as for an engine.
    spans = await files.trace(TRACE)
    assert {(edge.caller, edge.service): edge for edge in calls.edges(spans)} == edges
    assert set(calls.cells(spans, 10**9)) == set(await files.heat(0, 0, 10**9))


async def test_traces_are_assembled_from_all_files(files: Files, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    (traces / "frontend.jsonl").write_text(export(otlp(1), service="frontend") + "no json\n" + '{"other": 1}\n')
    child = otlp(
        2,
        parent=1,
        start=100,
        kind=3,
        status={"code": 2, "message": "it failed"},
        attributes=[
            {"key": "die.type", "value": {"stringValue": "fair"}},
            {"key": "die.result", "value": {"intValue": "6"}},
            {"key": "list", "value": {"arrayValue": {"values": [{"boolValue": True}]}}},
        ],
        events=[{"name": "exception", "timeUnixNano": "1700000000000000200", "attributes": []}],
    )
    (traces / "dice-roller.jsonl").write_text(export(child, otlp(3, trace_id="e" * 32)))
    spans = {span.span_id: span for span in await files.trace(TRACE)}
    assert len(spans) == 2
    span = spans[f"{2:016x}"]
    assert (span.service, span.failed, span.message) == ("dice-roller", True, "it failed")
    assert span.attributes == {"die.type": "fair", "die.result": 6, "list": [True]}
    assert [name for name, _, _ in span.events] == ["exception"]
    found = await files.traces(TraceQuery(die="fair", failed=True, service="frontend", min_duration_ms=0.001))
    assert [(trace.trace_id, trace.spans, trace.services) for trace in found] == [
        (TRACE, 2, ("dice-roller", "frontend"))
    ]
    assert [trace.trace_id for trace in await files.traces(TraceQuery(failed=False))] == ["e" * 32]
    assert await files.traces(TraceQuery(min_duration_ms=5)) == []


def test_older_parts_of_a_file_are_read_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks much smaller than the file, and some smaller than a line."""
    monkeypatch.setattr(index, "CHUNK", 300)
    monkeypatch.setattr(index, "FIRST_CHUNK", 50)
    (tmp_path / "logs").mkdir()
    (tmp_path / "work").mkdir()
    path = tmp_path / "logs" / "dice-roller.jsonl"
    lines = [line("x" * (number % 17 * 40) + f" {number}", number % 60) for number in range(100)]
    path.write_text("".join(lines) + '{"half": ')
    tables = index.Index(tmp_path, tmp_path / "work")
    tables.scan()
    assert tables.behind > 0
    while tables.behind:
        tables.read_back()
    names = ("service", "level", "trace_id", "span_id", "text", "without", "since", "until")
    query = dict.fromkeys(names, "")
    assert sorted(row["line"] + "\n" for row in tables.logs([], limit=1000, **query)["lines"]) == sorted(lines)


async def test_the_index_is_restarted_after_a_crash(files: Files, tmp_path: Path) -> None:
    (tmp_path / "logs" / "frontend.jsonl").write_text(line("one"))
    assert await messages(files) == ["one"]
    assert files._process is not None
    files._process.kill()
    assert await messages(files) == ["one"]


@pytest.mark.parametrize("end", ["closed", "killed", "deserted"])
async def test_the_index_removes_its_files(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    (tmp_path / "logs" / "frontend.jsonl").write_text(line("one"))
    assert await messages(files) == ["one"]
    [first] = (tmp_path / "work").iterdir()
    process = files._process
    assert process is not None
    assert process.stdin is not None
    if end == "killed":
        process.kill()
        await process.wait()
        assert await messages(files) == ["one"]
        assert not first.exists()
    elif end == "deserted":  # as after the page's process was killed
        process.stdin.close()
        await process.wait()
        assert not first.exists()
    await files.close()
    assert list((tmp_path / "work").iterdir()) == []
    with pytest.raises(SourceError):
        await files.lines(LogQuery())
    assert list((tmp_path / "work").iterdir()) == []


def span(
    number: int, parent: int = 0, start: int = 0, finish: int = 10, service: str = "a", kind: int = 1, status: int = 0
) -> Span:
    parent_id = str(parent) if parent else ""
    attributes = {"http.response.status_code": status} if status else {}
    return Span(TRACE, str(number), parent_id, service, f"s{number}", kind, start, finish, False, "", attributes)


def test_critical_path_and_self_times() -> None:
    trace = arrange(
        TRACE,
        [
            span(1, start=0, finish=100),
            span(2, parent=1, start=10, finish=40, service="b"),
            span(3, parent=1, start=10, finish=80, service="b"),  # ends later, so 2 is not on the critical path
            span(4, parent=3, start=20, finish=50, service="c"),
        ],
    )
    assert [(row.span.name, row.depth) for row in trace.rows] == [("s1", 0), ("s2", 1), ("s3", 1), ("s4", 2)]
    assert [(part.span.name, part.start, part.finish) for part in trace.critical] == [
        ("s1", 0, 10),
        ("s3", 10, 20),
        ("s4", 20, 50),
        ("s3", 50, 80),
        ("s1", 80, 100),
    ]
    # Of b: 2 from 10 to 40, 3 outside 4; together 10 to 40 and 50 to 80.
    assert trace.own == {"a": 30, "b": 60, "c": 30}
    assert trace.missing == ""


@pytest.mark.parametrize(
    ("spans", "missing"),
    [
        ([], "every span"),
        ([span(2, parent=1)], "a span that others name as their parent"),
        ([span(1, parent=2), span(2, parent=1)], "the root"),
        ([span(1), span(2, parent=1, kind=3, status=200)], "the answering side of a call"),
        ([span(1), span(2, parent=1, kind=3)], ""),  # a call without a response
        ([span(1), span(1)], ""),
    ],
)
def test_a_partial_trace_reports_what_is_missing(spans: list[Span], missing: str) -> None:
    trace = arrange(TRACE, spans)
    assert trace.missing == missing
    assert len(trace.rows) == len({entry.span_id for entry in spans})


def test_long_chains_and_cycles_of_spans_are_arranged() -> None:
    chain = [span(number, parent=number - 1, start=number, finish=9000 - number) for number in range(1, 3000)]
    trace = arrange(TRACE, [*chain, span(5000, parent=5000), span(5001, parent=5002), span(5002, parent=5001)])
    assert len(trace.rows) + trace.hidden == 3002
    assert sum(part.finish - part.start for part in trace.critical) == 9000 - 1 - 1


def test_quantiles_equal_those_of_prometheus() -> None:
    inf = float("inf")
    assert quantile(0.5, {0.1: 0, 0.2: 10, inf: 10}) == pytest.approx(0.15)
    assert quantile(0.5, {0.1: 4, inf: 4}) == pytest.approx(0.05)
    assert quantile(0.99, {0.1: 1, inf: 100}) == 0.1
    assert math.isnan(quantile(0.5, {0.1: 0, inf: 0}))
    assert math.isnan(quantile(0.5, {}))
    assert faces_of({0.0: 2, 1.0: 2, 6.0: 5, inf: 5}) == {0: 2, 6: 3}


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1500, "1.5 µs"),
        (183_400_000, "183 ms"),
        (999_499_999, "999 ms"),
        (999_700_000, "1 s"),  # not 1e+03 ms
        (1_240_000_000, "1.24 s"),
        (1_234_500_000_000, "1234 s"),
    ],
)
def test_durations_are_readable(nanoseconds: int, text: str) -> None:
    assert duration_text(nanoseconds) == text
