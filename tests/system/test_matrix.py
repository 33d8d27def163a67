"""Every cell of the feature matrix, checked against a running stage: what is present, and what is absent."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.signals import PROCESS_METRICS
from tests.support import matrix
from tests.support.labs import OPENMETRICS, Lab, Response, Span, get, tree, wait_for
from tests.support.matrix import STAGES, has, spans_of

CALLER_TRACE = "11112222333344445555666677778888"
BATCH = 6


class Evidence:
    """The telemetry of a stage after each of its features was used once."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stage = lab.stage
        front = lab.front
        self.roll = get(f"{front}/roll?die=fair")
        self.unknown = get(f"{front}/roll?die=nosuch")
        self.failed = self._until(500, f"{front}/roll?die=risky")
        self.called = get(f"{front}/roll?die=fair", headers={"traceparent": f"00-{CALLER_TRACE}-aaaabbbbccccdddd-01"})
        self.batch: Response | None = None
        self.failed_batch: Response | None = None
        if has("GET /roll-async", self.stage):
            self.batch = get(f"{front}/roll-async?die=fair&times={BATCH}")
            self.failed_batch = self._until(500, f"{front}/roll-async?die=risky&times=20")
        if has("die service", self.stage):
            self.list = get(lab.url("die-service") + "/dice")
            self._open_page()
        if has("usage tracking logs", self.stage):
            self._sign_in_roll_and_out()
        self.spans = lab.trace(self.roll.trace_id, spans_of(self.stage))
        self.batch_spans = lab.trace(self.batch.trace_id, spans_of(self.stage, BATCH)) if self.batch else []
        lab.settle()
        self.logs = lab.logs()
        self.families: dict[str, dict[str, Any]] = {}
        for service in lab.services:
            body = get(lab.url(service) + "/metrics", headers={"Accept": OPENMETRICS}).body.decode()
            self.families[service] = {family.name: family for family in text_string_to_metric_families(body)}

    @staticmethod
    def _until(status: int, url: str) -> Response:
        for _ in range(400):  # a risky die fails every tenth time: 400 rolls all succeed with a probability of 10^-18
            response = get(url)
            if response.status == status:
                return response
        raise AssertionError(f"{url} never returned {status}")

    def _open_page(self) -> None:
        assert get(self.lab.front + "/").status == 200  # with sign-in it redirects to the form

    def _sign_in_roll_and_out(self) -> None:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
        )
        front = self.lab.front
        form = urllib.parse.urlencode({"name": "alice"}).encode()
        assert opener.open(f"{front}/sign-in", data=form).url == f"{front}/"
        opener.open(f"{front}/roll?die=fair").read()
        assert opener.open(f"{front}/sign-out", data=b"").url == f"{front}/sign-in"

    def family_names(self) -> set[str]:
        return {
            name for families in self.families.values() for name in families if not name.startswith(PROCESS_METRICS)
        }

    def span_named(self, name: str) -> list[Span]:
        return [span for span in self.lab.spans() if span.name == name]

    def offers(self, service: str, path: str) -> bool:
        if service not in self.lab.services:
            return False
        status = get(self.lab.url(service) + path).status
        assert status in (200, 404)
        return status == 200


_evidence: dict[int, Evidence] = {}


@pytest.fixture
def evidence(stage_lab: Callable[[int], Lab], request: pytest.FixtureRequest) -> Evidence:
    stage: int = request.param
    if stage not in _evidence:
        _evidence[stage] = Evidence(stage_lab(stage))
    return _evidence[stage]


def overlap(spans: list[Span]) -> bool:
    """Whether some spans ran at the same time, which those of sequential rolls never do."""
    spans = sorted(spans, key=lambda span: span.start)
    return any(after.start < before.end for before, after in pairwise(spans))


PRESENT: dict[str, Callable[[Evidence], bool]] = {
    "dice roller": lambda e: "dice-roller" in e.lab.services,
    "frontend": lambda e: "frontend" in e.lab.services,
    "die service": lambda e: "die-service" in e.lab.services,
    "postgres": lambda e: "postgres" in e.lab.state and (e.lab.run_dir / "postgres").exists(),
    "GET /roll": lambda e: e.offers("dice-roller", "/roll?die=fair"),
    "GET /roll-async": lambda e: (
        e.offers("dice-roller", "/roll-async?die=fair&times=2") or e.offers("frontend", "/roll-async?die=fair&times=2")
    ),
    "GET /dice": lambda e: e.offers("die-service", "/dice"),
    "automatic http metrics": lambda e: {"http_requests", "http_request_duration_seconds"} <= e.family_names(),
    "custom business metrics": lambda e: {"dice_rolls", "dice_roll_value"} <= e.family_names(),
    "service-to-service metrics": lambda e: any(name.startswith("die_service_request") for name in e.family_names()),
    "database metrics": lambda e: any(name.startswith("database_") for name in e.family_names()),
    "async operation metrics": lambda e: any(name.startswith("async_") for name in e.family_names()),
    "structured json logs": lambda e: len(e.logs) > 0,
    "trace context in logs": lambda e: any("trace_id" in line for line in e.logs),
    "usage tracking logs": lambda e: any(
        {"usage", "event_type", "session_id", "username"} & line.keys() for line in e.logs
    ),
    "automatic instrumentation": lambda e: any(span.kind == 2 for span in e.spans),
    "trace context propagation": lambda e: e.called.trace_id == CALLER_TRACE,
    "distributed traces": lambda e: len({span.service for span in e.spans}) > 1,
    "parent and child spans": lambda e: bool(e.span_named("async roll batch")),
    "concurrent operation traces": lambda e: (
        bool(e.batch_spans) and overlap([span for span in e.batch_spans if re.fullmatch(r"roll \d+", span.name)])
    ),
    "database query spans": lambda e: any("db.system.name" in span.attributes for span in e.lab.spans()),
}


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
@pytest.mark.parametrize("feature", matrix.FEATURES)
def test_features_match_the_matrix(evidence: Evidence, feature: str) -> None:
    assert PRESENT[feature](evidence) is has(feature, evidence.stage)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_metric_families_match_the_stage(evidence: Evidence) -> None:
    for service, families in evidence.families.items():
        expected = {name: (kind, labels) for name, kind, labels in matrix.COMMON_METRICS}
        expected |= {
            name: (kind, labels)
            for first, owner, name, kind, labels in matrix.METRICS
            if owner == service and first <= evidence.stage
        }
        ours = {name: family for name, family in families.items() if not name.startswith(PROCESS_METRICS)}
        assert ours.keys() == expected.keys()
        for name, family in ours.items():
            kind, labels = expected[name]
            assert family.type == kind
            assert family.samples, f"{name} shows nothing"
            assert all(set(sample.labels) - {"le"} == labels for sample in family.samples)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_histograms_have_exemplars(evidence: Evidence) -> None:
    for service in evidence.lab.services:
        exemplars = [
            sample.exemplar.labels["trace_id"]
            for family in evidence.families[service].values()
            for sample in family.samples
            if sample.exemplar
        ]
        assert exemplars
        assert all(re.fullmatch(r"[0-9a-f]{32}", trace_id) for trace_id in exemplars)
        wait_for(lambda: set(exemplars) <= {span.trace_id for span in evidence.lab.spans()}, say="the spans")  # noqa: B023


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_every_log_line_is_a_json_object_with_the_fixed_fields(evidence: Evidence) -> None:
    for service in evidence.lab.services:
        lines = evidence.lab.log_lines(service)
        assert lines
        for line in lines:
            document = json.loads(line)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["timestamp"])
            assert document["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
            assert isinstance(document["message"], str)
            assert document["message"]
            assert document["logger"] == service
            if "trace_id" in document:
                assert re.fullmatch(r"[0-9a-f]{32}", document["trace_id"])
                assert re.fullmatch(r"[0-9a-f]{16}", document["span_id"])


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
@pytest.mark.parametrize(("first", "name", "kind"), matrix.LOG_FIELDS, ids=[name for _, name, _ in matrix.LOG_FIELDS])
def test_log_fields_have_their_type_and_stages(evidence: Evidence, first: int, name: str, kind: type) -> None:
    values = [line[name] for line in evidence.logs if name in line]
    assert bool(values) is (evidence.stage >= first)
    assert all(type(value) is kind for value in values)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_log_events_of_the_stage(evidence: Evidence) -> None:
    seen = {(line["logger"], line["level"], line["message"]) for line in evidence.logs}
    wanted = {event[1:] for event in matrix.LOG_EVENTS if event[0] <= evidence.stage}
    unwanted = {event[1:] for event in matrix.LOG_EVENTS} - wanted
    assert wanted <= seen
    assert not unwanted & seen


@pytest.mark.parametrize("evidence", [6], indirect=True)
def test_usage_lines_cover_the_whole_visit(evidence: Evidence) -> None:
    usage = [line for line in evidence.logs if "usage" in line]
    visits: dict[str, list[str]] = {}
    for line in usage:
        assert line["usage"] is True
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line["session_id"])
        visits.setdefault(line["session_id"], []).append(line["event_type"])
    assert ["sign_in", "roll", "sign_out"] in visits.values()


def expected_roll(stage: int) -> Any:
    """The tree of one roll, from the inside out."""
    select = (("die-service", "SELECT", ()),) if has("database query spans", stage) else ()
    dice = (("dice-roller", "GET", (("die-service", "GET /dice", select),)),) if has("GET /dice", stage) else ()
    roll = ("dice-roller", "GET /roll", dice)
    if not has("frontend", stage):
        return (roll,)
    return (("frontend", "HTTP GET", (("frontend", "button click", ()), ("frontend", "GET", (roll,)))),)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_span_tree_of_a_roll(evidence: Evidence) -> None:
    assert tree(evidence.spans) == expected_roll(evidence.stage)
    by_name = {(span.service, span.name): span for span in evidence.spans}
    roll = by_name["dice-roller", "GET /roll"]
    assert roll.attributes["die.type"] == "fair"
    assert roll.attributes["die.result"] == evidence.roll.json["roll"]
    assert roll.kind == 2
    assert not any(span.failed for span in evidence.spans)
    if has("frontend", evidence.stage):
        assert by_name["frontend", "button click"].attributes["die.type"] == "fair"
    if has("GET /dice", evidence.stage):
        dice = by_name["die-service", "GET /dice"]
        assert dice.attributes["die.identifier"] == "fair"
        assert dice.attributes["die.found"] is True
    if has("database query spans", evidence.stage):
        select = by_name["die-service", "SELECT"]
        assert select.attributes["db.system.name"] == "postgresql"
        assert select.attributes["db.namespace"] == "dice"
        assert "server.port" in select.attributes or select.attributes["server.address"].startswith("/")
        assert select.attributes["db.query.text"].startswith("SELECT identifier, faces, error_rate FROM dice WHERE")
        assert "fair" not in select.attributes["db.query.text"]


@pytest.mark.parametrize("evidence", [4, 5, 6], indirect=True, ids=lambda stage: f"stage{stage}")
def test_span_tree_of_a_batch(evidence: Evidence) -> None:
    assert evidence.batch is not None
    select = (("die-service", "SELECT", ()),) if has("database query spans", evidence.stage) else ()
    rolls = tuple(("dice-roller", f"roll {index}", ()) for index in range(1, BATCH + 1))
    server = (
        "dice-roller",
        "GET /roll-async",
        (
            (
                "dice-roller",
                "query die service",
                (("dice-roller", "GET", (("die-service", "GET /dice", select),)),),
            ),
            ("dice-roller", "async roll batch", rolls),
        ),
    )
    expected = (("frontend", "HTTP GET", (("frontend", "button click", ()), ("frontend", "GET", (server,)))),)
    assert tree(evidence.batch_spans) == expected
    batch = next(span for span in evidence.batch_spans if span.name == "async roll batch")
    assert batch.attributes["async.batch_size"] == BATCH
    assert batch.attributes["async.total_result"] == evidence.batch.json["total"]
    children = [span for span in evidence.batch_spans if span.parent_id == batch.span_id]
    children.sort(key=lambda span: span.start)
    assert [span.attributes["async.roll_index"] for span in children] == list(range(1, BATCH + 1))
    assert [span.attributes["die.result"] for span in children] == evidence.batch.json["rolls"]
    assert all(batch.start <= span.start <= span.end <= batch.end for span in children)
    assert overlap(children)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_a_failed_roll_marks_every_span_above_it(evidence: Evidence) -> None:
    spans = evidence.lab.trace(evidence.failed.trace_id, spans_of(evidence.stage))
    failed = {(span.service, span.name) for span in spans if span.failed}
    expected = {("dice-roller", "GET /roll")}
    if has("frontend", evidence.stage):
        expected |= {("frontend", "HTTP GET"), ("frontend", "GET")}
    assert failed == expected
    assert all("exception" in span.events for span in spans if span.failed)
    if evidence.failed_batch is None:
        return
    spans = evidence.lab.trace(evidence.failed_batch.trace_id, spans_of(evidence.stage, 20))
    wrong = [index for index, face in enumerate(evidence.failed_batch.json["rolls"], start=1) if face is None]
    assert evidence.failed_batch.json["failed"] == wrong
    assert {span.name for span in spans if span.failed} == {
        *(f"roll {index}" for index in wrong),
        *("async roll batch", "GET /roll-async", "GET", "HTTP GET"),
    }
    assert all("exception" in span.events for span in spans if span.failed)


@pytest.mark.parametrize("evidence", STAGES, indirect=True, ids=lambda stage: f"stage{stage}")
def test_a_client_error_is_not_a_span_error(evidence: Evidence) -> None:
    assert evidence.unknown.status == 404
    spans = evidence.lab.trace(evidence.unknown.trace_id, spans_of(evidence.stage))
    assert not any(span.failed for span in spans if span.kind == 2)
