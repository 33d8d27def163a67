"""``otel.fast`` against the real SDK and instrumentations: one program produces the same telemetry under both.

Spans, lines and metrics are compared field by field; ids are replaced by span names, and times are removed. Intended
differences are in a table in docs/instrumentation.md; each row has a function here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.paths import ROOT
from lab.supervise.postgres import EmbeddedPostgres

SERVICES = ("dice-roller", "die-service", "frontend")
TIMED_FIELDS = {"duration_ms", "db_query_duration_ms", "waited_ms"}
# Values that depend on process or time: present in both, with different values.
MEASURED = re.compile(r"process_|python_|database_connection_pool_|event_loop_lag|.*_seconds(_bucket|_sum)?$")

Trace = dict[str, Any]


# --- intended differences ---


def _without_empty(value: Any) -> Any:
    """Remove empty fields: in OTLP an empty and an absent field are the same."""
    if isinstance(value, dict):
        cleaned = {key: _without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in cleaned.items() if entry not in ([], "", {}, 0, None)}
    return [_without_empty(entry) for entry in value] if isinstance(value, list) else value


def _without_room(document: Trace) -> Trace:
    attributes = [entry for entry in document["resource"]["attributes"] if entry["key"] != "dicelab.telemetry"]
    assert len(attributes) == len(document["resource"]["attributes"]) - 1
    document["resource"]["attributes"] = attributes
    return document


_FRAME = re.compile(r'  File "([^"]+)", line \d+, in .*\n(?:    .*\n)*')


def _own_frames(document: Trace) -> Trace:
    """Stack traces without the frames of the packages that make the spans."""

    def kept(match: re.Match[str]) -> str:
        return "" if re.search(r"/opentelemetry/|/otel/|/contextlib\.py", match[1]) else match[0]

    for event in document.get("events", []):
        for attribute in event["attributes"]:
            if attribute["key"] == "exception.stacktrace":
                attribute["value"]["stringValue"] = _FRAME.sub(kept, attribute["value"]["stringValue"])
    return document


DIFFERENCES: dict[str, Callable[[Trace], Trace]] = {
    "resource attribute `dicelab.telemetry`": _without_room,
    "frames in `exception.stacktrace`": _own_frames,
    "empty fields of OTLP JSON": _without_empty,
}


def test_docs_list_each_difference() -> None:
    text = (ROOT / "docs" / "instrumentation.md").read_text()
    table = text.partition("| what differs |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in table] == list(DIFFERENCES)


# --- one run ---


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("oracle") / "postgres")
    postgres.start()
    yield postgres.url
    postgres.close()


class Run:
    """The program's telemetry in comparable form."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: dict[str, str] = {}
        documents = []
        for line in (directory / "spans.jsonl").read_bytes().splitlines():
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    about = {"scope": scope["scope"], "schemaUrl": scope.get("schemaUrl", "")}
                    for span in scope["spans"]:
                        documents.append(
                            {**span, **about, "resource": {"attributes": list(resource["resource"]["attributes"])}}
                        )
        documents.sort(key=lambda span: int(span["startTimeUnixNano"]))
        for span in documents:
            self.names[span["spanId"]] = span["name"]
        self.spans = [self._comparable(span) for span in documents]
        self.lines = [self._line(json.loads(line)) for line in (directory / "lines.jsonl").read_bytes().splitlines()]

    def _comparable(self, span: Trace) -> Trace:
        for difference in DIFFERENCES.values():
            span = difference(span)
        assert int(span.pop("startTimeUnixNano")) <= int(span.pop("endTimeUnixNano"))
        parent = span.pop("parentSpanId", "")
        span["parent"] = self.names.get(parent, parent)
        span["trace"] = self._trace(span.pop("traceId"))
        del span["spanId"]
        for link in span.get("links", []):
            link["traceId"], link["spanId"] = (
                self._trace(link["traceId"]),
                self.names.get(link["spanId"], link["spanId"]),
            )
        for event in span.get("events", []):
            assert event.pop("timeUnixNano")
            event["attributes"].sort(key=lambda attribute: attribute["key"])
        for attribute in span["resource"]["attributes"]:
            if attribute["key"] in ("service.instance.id", "process.pid"):
                attribute["value"] = len(attribute["value"])
        span.get("attributes", []).sort(key=lambda attribute: attribute["key"])
        return span

    def _trace(self, trace_id: str) -> str:
        """A caller's own trace ids have one digit only; others are different each time."""
        return trace_id if len(set(trace_id[-16:])) == 1 else "made here"

    def _line(self, line: Trace) -> Trace:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
        if "trace_id" in line:
            line["trace_id"] = self._trace(line["trace_id"])
            line["span_id"] = self.names.get(line["span_id"], "not kept")
        for field in TIMED_FIELDS & line.keys():
            assert line[field] >= 0
            line[field] = type(line[field]).__name__
        if "exception" in line:
            line["exception"] = _own_frames(
                {
                    "events": [
                        {"attributes": [{"key": "exception.stacktrace", "value": {"stringValue": line["exception"]}}]}
                    ]
                }
            )
        return line

    def metrics(self, service: str) -> dict[str, Any]:
        """Each sample's value, and whether it has an exemplar; the families with their types and help texts."""
        found: dict[str, Any] = {}
        for family in text_string_to_metric_families((self.directory / f"{service}.metrics").read_text()):
            found[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                name = f"{sample.name}{sorted(sample.labels.items())}"
                measured = MEASURED.match(sample.name)
                found[name] = None if measured else (sample.value, sample.exemplar is not None)
                assert sample.exemplar is None or re.fullmatch("[0-9a-f]{32}", sample.exemplar.labels["trace_id"])
        return found


@pytest.fixture(scope="module", params=["http,database", "", "http/dup,database/dup"], ids=["stable", "older", "both"])
def runs(
    request: pytest.FixtureRequest, database: str, tmp_path_factory: pytest.TempPathFactory,
    unused_tcp_port_factory: Callable[[], int],
) -> tuple[Run, Run]:  # fmt: skip
    """The same program, on the same ports, under the standard packages and under ours."""
    ports = [str(unused_tcp_port_factory()) for _ in range(5)]
    found = []
    for telemetry in ("standard", "fast"):
        directory = tmp_path_factory.mktemp(telemetry)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        chosen = {"OTEL_SEMCONV_STABILITY_OPT_IN": request.param}
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.unit.otel.oracle", str(directory), *ports],
            env=environ | chosen | {"TELEMETRY": telemetry, "DATABASE_URL": database},
            cwd=ROOT, check=False, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        found.append(Run(directory))
    return found[0], found[1]


def in_order(entries: list[Trace]) -> list[str]:
    """Spans and lines of concurrent requests have no fixed order."""
    return sorted(json.dumps(entry, sort_keys=True) for entry in entries)


def test_spans_are_equal(runs: tuple[Run, Run]) -> None:
    standard, fast = runs
    assert len(standard.spans) > 200
    assert in_order(fast.spans) == in_order(standard.spans)


STABLE = {
    "http.request.method", "http.response.status_code", "url.path", "url.full", "server.address", "db.system.name",
    "db.query.text",
}  # fmt: skip
OLDER = {"http.method", "http.status_code", "http.target", "http.url", "net.peer.name", "db.system", "db.statement"}
BY_CHOICE = {"http,database": (STABLE, OLDER), "": (OLDER, STABLE), "http/dup,database/dup": (STABLE | OLDER, set())}


def test_servers_clients_and_queries_follow_the_conventions_that_are_chosen(
    request: pytest.FixtureRequest, runs: tuple[Run, Run]
) -> None:
    expected, excluded = BY_CHOICE[request.node.callspec.params["runs"]]
    for run in runs:
        names = {attribute["key"] for span in run.spans for attribute in span.get("attributes", [])}
        assert expected <= names
        assert not excluded & names


def test_exception_events_have_no_deprecated_attribute(runs: tuple[Run, Run]) -> None:
    for run in runs:
        events = [event for span in run.spans for event in span.get("events", []) if event["name"] == "exception"]
        keys = [{attribute["key"] for attribute in event["attributes"]} for event in events]
        assert len(keys) > 20
        assert all({"exception.type", "exception.message", "exception.stacktrace"} <= one for one in keys)
        assert not any("exception.escaped" in one for one in keys)


def test_lines_are_equal(runs: tuple[Run, Run]) -> None:
    standard, fast = runs
    assert len(standard.lines) > 200
    assert in_order(fast.lines) == in_order(standard.lines)


@pytest.mark.parametrize("service", SERVICES)
def test_metrics_are_equal(runs: tuple[Run, Run], service: str) -> None:
    standard, fast = runs
    assert len(standard.metrics(service)) > 50
    assert fast.metrics(service) == standard.metrics(service)


def test_program_covers_every_outcome(runs: tuple[Run, Run]) -> None:
    """Ensures that the program exercises every outcome."""
    standard, _ = runs
    text = json.dumps(standard.spans)
    for expected in ("KeyError", "RollFailed", "ClientConnectorError", "ServerDisconnectedError", "CancelledError",
                     "TimeoutError", "UndefinedTable", "a=1,b=2", "linked", "caf?", "direct cause"):  # fmt: skip
        assert expected in text, expected
    statuses = {line.get("http_status") for line in standard.lines}
    assert statuses >= {200, 201, 302, 304, 400, 404, 405, 410, 418, 422, 499, 500, 502, 503, 504}
    assert any(line.get("span_id") == "not kept" for line in standard.lines)
