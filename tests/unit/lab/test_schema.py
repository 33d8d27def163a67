"""The registry matches the code, the documentation is generated from it, and mistakes are found."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

import dieservice.telemetry
import frontend.telemetry
import roller.telemetry
from exporter.collectors import DiceTable, RunDirectory
from exporter.probes import Result
from lab.chaos.mark import marked
from lab.paths import ROOT
from lab.schema import docs
from lab.schema.judge import Judge
from lab.schema.registry import (
    CONVENTIONS,
    EVERY_SERVICE,
    EXPORTER,
    FOLDER,
    OTHERS,
    REQUIRED,
    Event,
    Registry,
    references,
)
from lab.signals import Line, Span
from otel import metrics
from otel.http import HttpMetrics
from tests.support.schema import EXCEPTION, MISTAKES, PAGE, ROLL, line, span
from web import runtime_metrics

SHARED = ("web", "otel")
FOLDERS = {"dice-roller": "roller", "die-service": "dieservice", "frontend": "frontend"}
DICE = ["fair"]


@lru_cache(1)
def registry() -> Registry:
    return Registry.read()


# --- the files ---


def test_the_documentation_is_generated_from_the_registry() -> None:
    assert docs.FILE.read_text() == docs.telemetry(registry()), "run make telemetry-docs"


def test_the_excerpt_has_the_referenced_attributes_in_the_version_of_the_manifest() -> None:
    excerpt = json.loads((FOLDER / CONVENTIONS).read_text())
    assert set(excerpt["attributes"]) == references(FOLDER), "run python -m lab.schema with a copy of the conventions"
    (dependency,) = yaml.safe_load((FOLDER / "manifest.yaml").read_text())["dependencies"]
    assert dependency["schema_url"] == f"https://opentelemetry.io/schemas/{excerpt['version']}"
    assert f"@v{excerpt['version']}[model]" in dependency["registry_path"]


def test_prometheus_names_follow_from_opentelemetry_names() -> None:
    """By OpenTelemetry's rule for names, units (those in braces have no suffix) and counters."""
    for metric in registry().metrics.values():
        unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
        total = "_total" if metric.instrument == "counter" else ""
        assert metric.prometheus == metric.name.replace(".", "_") + unit + total


def test_every_attribute_is_used() -> None:
    one = registry()
    signals = (*one.spans, *one.events, *one.metrics.values())
    used = {use.attribute.key for signal in signals for use in signal.uses.values()}
    used |= {use.attribute.key for use in (*one.resource.values(), *one.exception.values())}
    assert set(one.attributes) == used


# --- the code: metrics ---


class DiceTableOf(DiceTable):
    """The dice table with one die, without its database."""

    def read(self) -> Iterator[Metric]:
        return self.families([(self._url, 6, 0.0, 1)])


class One(Collector):
    """One family of metrics."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run dir with a file of each signal, a state file and a running experiment, for the exporter."""
    path = tmp_path_factory.mktemp("run")
    with marked(path, "database-down"):
        yield _filled(path)


def _filled(path: Path) -> Path:
    for name in ("logs/frontend.jsonl", "traces/frontend.jsonl"):
        (path / name).parent.mkdir()
        (path / name).write_text("{}\n")
    (path / "state.json").write_text(json.dumps({"services": [{"name": "frontend", "restarts": 0}]}))
    return path


def families(service: str, run_dir: Path) -> dict[str, tuple[str, str, set[str]]]:
    """Type, HELP text and labels of what a service registers, by the name on ``/metrics``."""
    found = metrics.new_registry()
    HttpMetrics(found).expect("/", "GET", [200])
    runtime_metrics.add(web.Application(), found)
    if service == EXPORTER:
        found = CollectorRegistry()
        found.register(DiceTableOf("fair"))
        found.register(RunDirectory(run_dir))
        for family in Result("success", 200, 0.1).registry().collect():
            found.register(One(family))
    elif service == "dice-roller":
        rolls = roller.telemetry.RollTelemetry(found, DICE)
        roller.telemetry.BatchTelemetry(found, rolls, DICE)
        roller.telemetry.DieServiceTelemetry(found)
    elif service == "die-service":
        dieservice.telemetry.DiceTelemetry(found)
        dieservice.telemetry.DatabaseTelemetry(found)
    else:
        frontend.telemetry.FrontendTelemetry(found, DICE, 100)
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            family.documentation,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in found.collect()
    }


@pytest.mark.parametrize("service", [*EVERY_SERVICE, *OTHERS])
def test_the_metrics_of_a_service_are_those_of_the_registry(service: str, run_dir: Path) -> None:
    declared = {
        name: (metric.instrument, metric.brief, set(metric.uses))
        for name, metric in registry().metrics.items()
        if service in metric.services
    }
    assert families(service, run_dir) == declared


def test_the_test_above_sees_registered_metrics() -> None:
    found = CollectorRegistry()
    HttpMetrics(found)
    assert {family.name for family in found.collect()} < {
        name.removesuffix("_total") for name in families("frontend", FOLDER)
    }


# --- the code: log lines ---


class Logged:
    """The levels and fields of all calls with one message."""

    def __init__(self) -> None:
        self.levels: set[str] = set()
        self.calls: list[set[str]] = []
        self.open = False  # it passes on fields that the call does not list


def _text(node: ast.expr) -> list[str]:
    """The possible texts of an expression, with ``{}`` for its variable parts."""
    if isinstance(node, ast.IfExp):
        return _text(node.body) + _text(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]  # type: ignore[misc]
    if isinstance(node, ast.Constant):
        return [re.sub(r"%[sgd]", "{}", str(node.value))]
    return []


def _levels(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return _levels(node.body) + _levels(node.orelse)
    return [node.attr] if isinstance(node, ast.Attribute) else []


def calls(paths: Iterator[Path]) -> Iterator[ast.Call]:
    for path in paths:
        yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def lines(service: str | None) -> dict[str, Logged]:
    """The log calls in the code of a service, or (``None``) in the code that all services share, by message."""
    found: dict[str, Logged] = {}
    folders = (FOLDERS[service],) if service else SHARED
    for call in calls(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if name == "_line" and len(call.args) == 2:
            levels, message, fields = _levels(call.args[0]), call.args[1], set(keywords) - {None}
        elif "extra" in keywords and name in ("debug", "info", "warning", "error", "exception", "critical"):
            levels, message = ["ERROR" if name == "exception" else name.upper()], call.args[0]
            fields = {"exception"} if name == "exception" or "exc_info" in keywords else set()
        else:
            continue
        for text in _text(message):
            logged = found.setdefault(text, Logged())
            logged.levels |= set(levels)
            logged.calls.append({str(field) for field in fields})
            logged.open |= None in keywords
    return found


# Messages that are not literals in the call: those of otel.WARNINGS.
ELSEWHERE = {"TELEMETRY=fast is not possible: {}; standard is used"}


def declared_lines(service: str | None) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in registry().events:
        if event.level != "any" and event.services == ((service,) if service else tuple(EVERY_SERVICE)):
            found.setdefault(re.sub(r"\{[^}]*\}", "{}", event.line), []).append(event)
    return found


@pytest.mark.parametrize("service", [*EVERY_SERVICE, None])
def test_the_log_lines_of_a_service_are_those_of_the_registry(service: str | None) -> None:
    declared, logged = declared_lines(service), lines(service)
    assert set(declared) - ELSEWHERE == set(logged)
    for message, found in logged.items():
        (event,) = declared[message]
        # If one call has two messages and two levels, each message has one of the levels.
        assert event.level in found.levels, message
        assert set().union(*found.calls) <= set(event.uses), message
        assert set(event.uses) <= set().union(*found.calls) or found.open, message
        required = {name for name, use in event.uses.items() if use.level == REQUIRED}
        assert required == set.intersection(*found.calls), message


# --- the code: spans ---


def spans_made(service: str) -> tuple[set[str], set[str]]:
    """The names of the spans that a service's own code makes, and the attributes that it sets."""
    names, attributes = set(), set()
    for call in calls(iter(sorted((ROOT / FOLDERS[service]).rglob("*.py")))):
        if not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr == "span" and isinstance(call.func.value, ast.Name) and call.func.value.id == "traces":
            names |= set(_text(call.args[0]))
            given = call.args[1] if len(call.args) > 1 else ast.Dict([], [])
            assert isinstance(given, ast.Dict)
            attributes |= {str(ast.literal_eval(key)) for key in given.keys if key}
        elif call.func.attr == "set_attribute":
            attributes |= set(_text(call.args[0]))
    return names, attributes


@pytest.mark.parametrize("service", EVERY_SERVICE)
def test_the_spans_of_a_service_are_those_of_the_registry(service: str) -> None:
    names, attributes = spans_made(service)
    ours = [span for span in registry().spans if span.services == (service,)]
    internal = [re.sub(r"\{[^}]*\}", "{}", name) for span in ours if span.kind == "internal" for name in span.names]
    assert names == set(internal)
    assert attributes == {use.attribute.key for span in ours for use in span.uses.values() if use.attribute.stage}


# --- deliberate mistakes ---


def judged(signal: Span | Line | str) -> Judge:
    judge = Judge(registry())
    if isinstance(signal, Span):
        judge.span(signal)
    elif isinstance(signal, Line):
        judge.line(signal)
    else:
        judge.metrics("dice-roller", signal)
    return judge


@pytest.mark.parametrize(
    "signal", [span(), span(exception=EXCEPTION), line(**ROLL), PAGE], ids=["span", "exception", "line", "page"]
)
def test_valid_telemetry_has_no_finding(signal: Span | Line | str) -> None:
    assert judged(signal).findings == []


@pytest.mark.parametrize(("signal", "kind"), [row[1:3] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_deliberate_mistake_is_found(signal: Span | Line | str, kind: str) -> None:
    (finding,) = judged(signal).findings
    assert finding.kind == kind
    if not isinstance(signal, str):
        assert finding.trace_id == signal.trace_id


@pytest.mark.parametrize(
    ("stage", "expected"), [(3, ["wrong_stage"]), (4, [])], ids=["before its stage", "at its stage"]
)
def test_telemetry_of_a_later_stage_is_a_finding(stage: int, expected: list[str]) -> None:
    judge = Judge(registry(), stage)
    judge.span(span("query die service", 1, {}))
    assert [finding.kind for finding in judge.findings] == expected


def test_coverage_counts_what_was_seen_of_what_the_stage_has() -> None:
    judge = Judge(registry(), 1, ["dice-roller"])
    judge.metrics("dice-roller", PAGE)
    judge.line(line(**ROLL))
    spans, events, families_ = judge.coverage()
    assert (spans.seen, events.seen, families_.seen) == (0, 1, 1)
    assert "dice.roll.value" in families_.unseen
    assert "dice.rolls" not in families_.unseen
    assert not {"async.rolls", "streamlit.requests"} & set(families_.unseen)
    assert "roll.failed" in events.unseen
