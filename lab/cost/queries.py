"""The queries of dashboards, recording rules and alerts, and whether one of them selects a series, line or span.

The parsers understand a part of each query language. What a parser does not understand it takes to match, so that
nothing that is in use is reported as unused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml

from lab.paths import COMPOSE, DASHBOARDS, ROOT
from lab.signals import SPAN_KINDS, STATUS_CODES, Line, Span

RULES = COMPOSE / "prometheus" / "rules"
# Code that queries too: the page, the commands and the exercises name metrics in it.
CODE = (ROOT / "frontend" / "explorer", ROOT / "lab")
NOT_CODE = ROOT / "lab" / "cost"

_TEXT = r'"(?:\\.|[^"\\])*"'
_BRACES = rf"\{{(?:{_TEXT}|[^\"{{}}])*\}}"
_PROMQL = re.compile(rf"(?P<name>[a-zA-Z_:][\w:]*)?\s*(?P<braces>{_BRACES})|{_TEXT}|(?P<bare>[a-zA-Z_:][\w:]*)")
_MATCHER = re.compile(rf"([\w.]+)\s*(=~|!~|!=|=)\s*({_TEXT})")
_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})")  # of a dashboard: it can have any value
_CONTAINS = re.compile(rf"(\|=|\|~)\s*({_TEXT})")
_LABEL_FILTER = re.compile(rf"\|\s*(\w+)\s*(=~|!~|!=|=)\s*({_TEXT})")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_LABEL_VALUES = re.compile(r"label_values\(.*,\s*(\w+)\)")
_CONDITION = re.compile(rf"([\w.]+)\s*(=~|!~|!=|>=|<=|=|>|<)\s*({_TEXT}|\w+)")


@dataclass(frozen=True)
class Matcher:
    """A condition on a label, a field or an attribute."""

    name: str
    operator: str
    value: str

    def holds(self, value: str) -> bool:
        """Whether a value meets the condition; an absent one is passed as the empty string."""
        if _VARIABLE.search(self.value):
            return True
        match self.operator:
            case "=":
                return value == self.value
            case "!=":
                return value != self.value
            case "=~":
                return _pattern(self.value).fullmatch(value) is not None
            case "!~":
                return _pattern(self.value).fullmatch(value) is None
        return True  # a comparison of numbers


@cache
def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error:  # RE2 supports expressions that Python does not
        return re.compile(".*", re.DOTALL)


def _matchers(text: str, pattern: re.Pattern[str] = _MATCHER) -> tuple[Matcher, ...]:
    return tuple(Matcher(name, operator, _unquoted(value)) for name, operator, value in pattern.findall(text))


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:  # Go has escape sequences that JSON does not have
        return text[1:-1]


@dataclass(frozen=True)
class MetricQuery:
    """PromQL: the series that it selects, and the labels that it groups by."""

    where: str
    selectors: tuple[tuple[str, tuple[Matcher, ...]], ...]
    grouping: frozenset[str]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        selectors = []
        for found in _PROMQL.finditer(text):
            if name := found["name"] or found["bare"]:
                selectors.append((name, _matchers(found["braces"] or "")))
            elif found["braces"]:
                conditions = _matchers(found["braces"])
                named = [one for one in conditions if one.name == "__name__"]
                selectors.append(("", conditions if named else ()))
        grouping = {label.strip() for labels in _GROUPING.findall(text) for label in labels.split(",")}
        return cls(where, tuple(selectors), frozenset(grouping) | set(_LABEL_VALUES.findall(text)))

    def finds(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the query selects a series. A label that is not given may have any value."""
        return any(
            (wanted == name or (not wanted and bool(matchers)))
            and all(
                one.holds(name if one.name == "__name__" else labels[one.name])
                for one in matchers
                if one.name in labels or one.name == "__name__"
            )
            for wanted, matchers in self.selectors
        )

    def names(self, label: str) -> bool:
        """Whether the query groups by a label or sets a condition on it."""
        return label in self.grouping or any(one.name == label for _, matchers in self.selectors for one in matchers)


@dataclass(frozen=True)
class LineQuery:
    """LogQL: the stream and the filters."""

    where: str
    stream: tuple[Matcher, ...]
    contains: tuple[tuple[str, str], ...]
    filters: tuple[Matcher, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        braces = re.search(_BRACES, text)
        rest = text[braces.end() :] if braces else ""
        contains = tuple((operator, _unquoted(value)) for operator, value in _CONTAINS.findall(rest))
        return cls(where, _matchers(braces[0]) if braces else (), contains, _matchers(rest, _LABEL_FILTER))

    @property
    def of_streams(self) -> bool:
        """Whether it shows whole streams, such as all lines of a service or of a level."""
        return not self.contains and not self.filters

    def finds(self, line: Line, text: str) -> bool:
        fields = {name: _text(value) for name, value in line.fields.items()}
        labels = fields | {"service_name": line.service, "level": line.level}
        return (
            all(one.holds(labels.get(one.name, "")) for one in (*self.stream, *self.filters))
            and all(
                _VARIABLE.search(wanted) or (wanted in text if how == "|=" else _pattern(wanted).search(text))
                for how, wanted in self.contains
            )
        )  # fmt: skip

    def names(self, field: str) -> bool:
        return any(one.name == field for one in self.filters)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class SpanQuery:
    """TraceQL: the conditions of each spanset; ``None`` for conditions that are not parsed and count as met."""

    where: str
    sets: tuple[tuple[Matcher, ...] | None, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        return cls(
            where, tuple(None if "||" in one else _matchers(one, _CONDITION) for one in re.findall(_BRACES, text))
        )

    def finds(self, span: Span) -> bool:
        known = {
            "name": span.name,
            "status": STATUS_CODES[span.status],
            "kind": SPAN_KINDS[span.kind],
            "resource.service.name": span.service,
        }

        def value(name: str) -> str:
            return known[name] if name in known else _text(span.attributes.get(name.removeprefix("span."), ""))

        return any(
            conditions is None or all(one.name == "duration" or one.holds(value(one.name)) for one in conditions)
            for conditions in self.sets
        )

    def names(self, attribute: str) -> bool:
        return any(one.name.removeprefix("span.") == attribute for conditions in self.sets for one in conditions or ())


@dataclass(frozen=True)
class Queries:
    """All queries.

    Attributes:
        service_map: whether a panel shows the service map, which is derived from client and server spans.
        code: the source text of :data:`CODE`, which is searched for names.
    """

    metrics: tuple[MetricQuery, ...]
    lines: tuple[LineQuery, ...]
    spans: tuple[SpanQuery, ...]
    service_map: bool
    code: str = ""

    @classmethod
    def read(cls, dashboards: Path = DASHBOARDS, rules: Path = RULES, code: Iterable[Path] = CODE) -> Self:
        """Read the queries of a directory of dashboards and one of rules.

        Raises:
            OSError, ValueError, KeyError: when a file is no dashboard or no rules.
        """
        made: dict[str, Callable[[str, str], Any]] = {
            "prometheus": MetricQuery.parse,
            "loki": LineQuery.parse,
            "tempo": SpanQuery.parse,
        }
        found: dict[str, dict[tuple[str, str], Any]] = {kind: {} for kind in made}
        service_map = False

        def add(kind: str, text: str, where: str) -> None:
            found[kind].setdefault((text, where), made[kind](text, where))

        for path in sorted(dashboards.glob("*.json")):
            content = json.loads(path.read_text())
            for panel in content["panels"]:
                for target in panel.get("targets", []):
                    if target.get("queryType") == "serviceMap":
                        service_map = True
                        continue
                    add(panel["datasource"]["type"], target.get("expr") or target["query"], f"panel {panel['title']}")
            for variable in content["templating"]["list"]:
                if variable["type"] == "query":
                    add(variable["datasource"]["type"], str(variable["query"]["query"]), f"variable {variable['name']}")
            for annotation in content["annotations"]["list"]:
                if expression := annotation.get("target", {}).get("expr"):
                    add(annotation["datasource"]["type"], expression, f"annotation {annotation['name']}")
        for path in sorted(rules.glob("*.yml")):
            for group in yaml.safe_load(path.read_text())["groups"]:
                for rule in group["rules"]:
                    kind = "alert" if "alert" in rule else "record"
                    add("prometheus", rule["expr"], f"{'alert' if kind == 'alert' else 'rule'} {rule[kind]}")
        sources = [path for folder in code for path in sorted(folder.rglob("*.py")) if NOT_CODE not in path.parents]
        return cls(
            tuple(found["prometheus"].values()),
            tuple(found["loki"].values()),
            tuple(found["tempo"].values()),
            service_map=service_map,
            code="\n".join(path.read_text() for path in sources),
        )

    def series(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a dashboard, a rule or an alert selects a series."""
        return any(query.finds(name, labels) for query in self.metrics)

    def in_code(self, name: str) -> bool:
        """Whether the page or a command names a metric, a log field or a span."""
        return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", self.code) is not None

    def label_users(self, label: str) -> list[str]:
        """Where a label is named: panels, rules and alerts, each once."""
        return list(dict.fromkeys(query.where for query in self.metrics if query.names(label)))

    def line(self, line: Line, text: str) -> str:
        """``filter``: a query filters for the line; ``list``: only queries of whole streams return it; else empty."""
        found = [query for query in self.lines if query.finds(line, text)]
        return "" if not found else "list" if all(query.of_streams for query in found) else "filter"

    def span(self, span: Span) -> str:
        """``query``: a panel's query finds it; ``map``: only the service map is derived from it; else empty."""
        if any(query.finds(span) for query in self.spans):
            return "query"
        return "map" if self.service_map and SPAN_KINDS[span.kind] in ("client", "server") else ""
