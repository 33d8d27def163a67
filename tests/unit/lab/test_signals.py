"""Spans from files and from Tempo, log lines, samples."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lab.signals import covered, json_object, parse_export, parse_line, parse_samples, parse_spans, total

TRACE, SPAN, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


def export(**changes: Any) -> dict[str, Any]:
    span = {
        "traceId": TRACE,
        "spanId": SPAN,
        "parentSpanId": PARENT,
        "name": "GET /roll",
        "kind": 2,
        "startTimeUnixNano": "1700000000000000001",
        "endTimeUnixNano": "1700000000000000009",
        "attributes": [
            {"key": "die.type", "value": {"stringValue": "fair"}},
            {"key": "http.response.status_code", "value": {"intValue": "503"}},
            {"key": "empty", "value": {}},
        ],
        "events": [{"name": "exception", "timeUnixNano": "1700000000000000005", "attributes": []}],
        "status": {"code": 2, "message": "refused"},
        **changes,
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "dice-roller"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": [span]}]}]}


def test_a_span_is_read_from_a_file() -> None:
    (span,) = parse_export(export())
    assert (span.service, span.name, span.kind, span.failed) == ("dice-roller", "GET /roll", 2, True)
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, SPAN, PARENT)
    assert span.end - span.start == 8
    assert span.attributes == {"die.type": "fair", "http.response.status_code": 503, "empty": ""}
    assert span.events == ["exception"]


def test_a_span_is_read_from_tempo() -> None:
    """Tempo writes ids in base64, and kinds and status codes by name."""
    ids = {
        name: base64.b64encode(bytes.fromhex(value)).decode()
        for name, value in {"traceId": TRACE, "spanId": SPAN, "parentSpanId": PARENT}.items()
    }
    tempo = export(**ids, kind="SPAN_KIND_SERVER", status={"code": "STATUS_CODE_ERROR", "message": "refused"})
    assert parse_export(tempo) == parse_export(export())


def test_a_root_span_without_optional_fields_is_read() -> None:
    document = export()
    span = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    for name in ("parentSpanId", "attributes", "events", "status", "kind"):
        del span[name]
    (found,) = parse_export(document)
    assert (found.parent_id, found.attributes, found.events, found.failed, found.kind) == ("", {}, [], False, 0)


def test_one_trace_is_selected_from_many_lines() -> None:
    other = "f" * 32
    lines = [json.dumps(export()), json.dumps(export(traceId=other))]
    assert [span.trace_id for span in parse_spans(lines)] == [TRACE, other]
    assert [span.trace_id for span in parse_spans(lines, other)] == [other]


def test_a_log_line_is_read_with_its_fields() -> None:
    line = parse_line('{"timestamp": "2026-01-02T03:04:05.678Z", "level": "INFO", "logger": "frontend", "n": 1}')
    assert (line.level, line.service, line.message, line.trace_id) == ("INFO", "frontend", "", "")
    assert line.has(n=1, level="INFO")
    assert not line.has(n=1, level="ERROR")
    for text in ("[1]", "Traceback", ""):
        with pytest.raises(ValueError, match=r"JSON|Expecting"):
            parse_line(text)


PAGE = """# TYPE rolls counter
rolls_total{die="fair",result="success"} 3.0
rolls_total{die="risky",result="success"} 4.0 # {trace_id="0af7"} 1.0
rolls_total{die="risky",result="error"} 5.0
# EOF
"""


def test_samples_are_summed_by_labels() -> None:
    samples = parse_samples(PAGE)
    assert total(samples, "rolls_total") == 12
    assert total(samples, "rolls_total", {"result": "success"}) == 7
    assert total(samples, "rolls_total", {"result": "success", "die": "nosuch"}) == 0
    assert total(samples, "nosuch") == 0
    with pytest.raises(ValueError, match="EOF"):
        parse_samples(PAGE.removesuffix("# EOF\n"))


@pytest.mark.parametrize(
    ("intervals", "length"), [([], 0), ([(0, 5), (3, 8)], 8), ([(0, 10), (2, 3)], 10), ([(0, 1), (5, 6)], 2)]
)
def test_overlapping_intervals_count_once(intervals: list[tuple[int, int]], length: int) -> None:
    assert covered(intervals) == length


@pytest.mark.parametrize(("body", "found"), [(b'{"a": 1}', {"a": 1}), (b"[1]", {}), (b"<html>", {}), (b"\xff", {})])
def test_a_body_without_a_json_object_is_empty(body: bytes, found: dict[str, int]) -> None:
    assert json_object(body) == found
