"""The dashboards' queries: found in their JSON, filled in as Grafana would, parsed by the query editors' grammars."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.labs import Span

GRAMMAR = Path(__file__).parents[1] / "grammar"
DASHBOARDS = Path(__file__).parents[2] / "grafana" / "dashboards"
LANGUAGES = {"prometheus": "promql", "loki": "logql", "tempo": "traceql"}
RANGE = 900  # seconds, the dashboards' own default
# As Grafana fills them in for that range and the default rate interval: $__rate_interval is four times the lowest step.
VARIABLES = {
    "$__rate_interval": "20s",
    "$__range": f"{RANGE}s",
    "$__auto": "5s",
    "$min_step": "5s",
    "${prometheus}": "prometheus",
    "${loki}": "loki",
    "${loki_usage}": "loki-usage",
    "${tempo}": "tempo",
    "${__from}": "1700000000000",
    "${__to}": "1700000900000",
}
ALL_DICE = ".*"


def fill(text: str, dice: str = ALL_DICE) -> str:
    """Replace the dashboards' variables; none is left."""
    for name, value in {**VARIABLES, "${die:regex}": dice, "$die": dice}.items():
        text = text.replace(name, value)
    assert "$" not in text, text
    return text


@dataclass(frozen=True)
class Query:
    """One query of a panel, an annotation, a variable or a data link."""

    panel: str
    source: str  # the data source's uid
    language: str
    text: str  # with its variables
    instant: bool = False

    def filled(self, dice: str = ALL_DICE) -> str:
        return fill(self.text, dice)


@cache
def dashboard(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text())
    return content


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard, without its rows."""
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[Query]:
    """Every query that the panels of a dashboard run."""
    for panel in panels(name):
        for target in panel.get("targets", []):
            kind, source = panel["datasource"]["type"], fill(panel["datasource"]["uid"])
            if target.get("queryType") == "serviceMap":
                continue  # Grafana makes it up itself; see test_dashboards.py
            instant = bool(target.get("instant")) or target.get("queryType") == "instant"
            yield Query(panel["title"], source, LANGUAGES[kind], target.get("expr") or target["query"], instant)


def links(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The panes that each data link opens in Explore: (panel's title, pane)."""
    for panel in panels(name):
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", []):
            address = urlsplit(fill(link["url"]))
            assert address.path == "/explore"
            for pane in json.loads(parse_qs(address.query)["panes"][0]).values():
                yield panel["title"], pane


def linked_queries(name: str) -> Iterator[Query]:
    for title, pane in links(name):
        for target in pane["queries"]:
            language = LANGUAGES[target["datasource"]["type"]]
            yield Query(title, pane["datasource"], language, target.get("expr") or target["query"])


Condition = tuple[str, str, str]  # name, operator, value


@dataclass(frozen=True)
class Selector:
    name: str
    matchers: tuple[Condition, ...]

    def __str__(self) -> str:
        inside = ",".join(f"{name}{operator}{json.dumps(value)}" for name, operator, value in self.matchers)
        return f"{self.name}{{{inside}}}"


@dataclass(frozen=True)
class Parsed:
    """A parsed query."""

    errors: tuple[str, ...]
    selectors: tuple[Selector, ...] = ()
    filters: tuple[Condition, ...] = ()
    labels: frozenset[str] = field(default_factory=frozenset)


def parse(queries: Iterable[tuple[str, str]]) -> list[Parsed]:
    """Parse (language, text) pairs with the grammars under ``tests/grammar``."""
    node = shutil.which("node")
    assert node, "no node on PATH; the tests need it to parse LogQL, TraceQL and PromQL"
    assert (GRAMMAR / "node_modules").is_dir(), f"the grammars are not installed; run npm ci in {GRAMMAR}"
    asked = json.dumps([{"language": language, "query": text} for language, text in queries])
    run = subprocess.run([node, GRAMMAR / "parse.mjs"], input=asked, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [
        Parsed(
            tuple(answer["errors"]),
            tuple(
                Selector(selector["name"], tuple(tuple(matcher) for matcher in selector["matchers"]))
                for selector in answer.get("selectors", [])
            ),
            tuple(tuple(condition) for condition in answer.get("filters", [])),
            frozenset(answer.get("labels", [])),
        )
        for answer in json.loads(run.stdout)
    ]


# --- whether a query can find anything ---


def _text(value: Any) -> str:
    """A value as LogQL's json parser and labels show it."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def holds(condition: Condition, value: Any) -> bool:
    """Whether a label, field or attribute of this value (``None``: absent) meets a condition."""
    _, operator, wanted = condition
    match operator:
        case "=":
            return _text(value) == wanted
        case "!=":
            return _text(value) != wanted
        case "=~":
            return re.fullmatch(wanted, _text(value)) is not None
        case "!~":
            return re.fullmatch(wanted, _text(value)) is None
        case ">":
            return value is not None and float(value) > float(wanted)
    raise ValueError(f"operator {operator} is new here")


def finds_line(parsed: Parsed, lines: Iterable[dict[str, Any]]) -> bool:
    """Whether a LogQL query finds any of these log lines, and whether they have the labels that it groups by."""
    conditions = [*(matcher for selector in parsed.selectors for matcher in selector.matchers), *parsed.filters]
    found = [
        line
        for line in lines
        if all(holds(condition, {**line, "service_name": line["logger"]}.get(condition[0])) for condition in conditions)
    ]
    return bool(found) and all(any(label in line for line in found) for label in parsed.labels)


KINDS = {2: "server", 3: "client", 1: "internal"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}


def _attribute(name: str, span: Span) -> Any:
    intrinsic = {"name": span.name, "kind": KINDS.get(span.kind), "status": STATUSES[span.status]}
    if name in intrinsic:
        return intrinsic[name]
    scope, _, attribute = name.partition(".")
    if scope == "resource":
        return {"service.name": span.service}.get(attribute)
    assert scope == "span", name
    return span.attributes.get(attribute)


def finds_spans(parsed: Parsed, spans: list[Span]) -> bool:
    """Whether each spanset of a TraceQL query finds a span; conditions on durations are ignored."""
    return all(
        any(
            all(
                holds(matcher, _attribute(matcher[0], span))
                for matcher in selector.matchers
                if matcher[0] != "duration"
            )
            for span in spans
        )
        for selector in parsed.selectors
    )
