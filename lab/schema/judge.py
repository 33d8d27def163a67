"""Compares spans, log lines and metrics with the registry.

Where ``weaver registry live-check`` checks the same thing, a finding has Weaver's name. Weaver does not check the names
of spans, required attributes of spans, levels of lines and stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.schema.registry import EVERY_SERVICE, REQUIRED, Attribute, Metric, Registry, Signal, Use
from lab.signals import SPAN_KINDS, Line, Span

LINE_FIELDS = ("timestamp", "level", "message", "logger")  # every line has them
CONTEXT_FIELDS = ("trace_id", "span_id")
HISTOGRAM_LABELS = {"le"}
MAX_LABEL_VALUES = 200  # of one label of one metric
# A name with low cardinality has no digits and no parts of a URL.
IDENTIFIER = re.compile(r"\d|[?&=]|://")

TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "boolean": (bool,), "int": (int,), "double": (float, int)}


@dataclass
class Finding:
    """Something that the registry does not allow.

    Attributes:
        kind: which rule is violated.
        where: the service and the span, line or metric.
        what: the violation, in a few words.
        count: how often it was seen.
        trace_id: an example; empty where there is none.
    """

    kind: str
    where: str
    what: str
    count: int = 0
    trace_id: str = ""

    def __str__(self) -> str:
        example = f", such as trace {self.trace_id}" if self.trace_id else ""
        return f"{self.kind}: {self.where}: {self.what} ({self.count}×{example})"  # noqa: RUF001


@dataclass(frozen=True)
class Coverage:
    """How much of the registry's spans, events or metrics was seen."""

    signal: str
    seen: int
    declared: int
    unseen: tuple[str, ...]


class Judge:
    """Collects findings. Feed it with :meth:`span`, :meth:`line` and :meth:`metrics`.

    Args:
        stage: the stage of the lab; telemetry of a later stage is a finding.
        services: the services that run, for the coverage.
    """

    def __init__(self, registry: Registry, stage: int = 6, services: Iterable[str] = tuple(EVERY_SERVICE)) -> None:
        self._registry = registry
        self._stage = stage
        self._services = frozenset(services)
        self._findings: dict[tuple[str, str, str], Finding] = {}
        self._seen: set[tuple[str, str]] = set()
        self._label_values: dict[tuple[str, str, str], set[str]] = {}
        self.unstable: set[str] = set()  # attributes that were seen and are not stable
        self.spans = self.lines = self.samples = 0

    @property
    def findings(self) -> list[Finding]:
        return sorted(self._findings.values(), key=lambda finding: (finding.kind, finding.where, finding.what))

    def coverage(self) -> list[Coverage]:
        """How many of the declared spans, events and metrics were seen; only of this stage and these services."""
        registry = self._registry
        rows = []
        for title, signals in (
            ("spans", registry.spans),
            ("events", registry.events),
            ("metrics", registry.metrics.values()),
        ):
            declared = [
                (service, one.name)
                for one in signals
                for service in one.services
                if service in self._services and one.stage_of(service) <= self._stage
            ]
            unseen = [pair for pair in declared if pair not in self._seen]
            names = tuple(sorted({name for _, name in unseen} - {name for _, name in self._seen}))
            rows.append(Coverage(title, len(declared) - len(unseen), len(declared), names))
        return rows

    # --- spans ---

    def span(self, span: Span) -> None:
        self.spans += 1
        kind = SPAN_KINDS[span.kind]
        where = f"{span.service} span {span.name!r} ({kind})"
        found = self._registry.span(span.service, kind, span.name, span.attributes)
        if found is None:
            if IDENTIFIER.search(span.name) or _has_a_value(span.name, span.attributes):
                self._add("high_cardinality_name", where, "the name has a part that differs by request", span.trace_id)
            else:
                self._add("missing_span", where, "the registry has no such span", span.trace_id)
            self._known(where, span.attributes, span.trace_id)
        else:
            self._signal(found, span.service, where, span.trace_id)
            self._attributes(found.uses, where, span.attributes, span.trace_id)
        self._attributes(self._registry.resource, f"{span.service} resource", span.resource, span.trace_id)
        for name, attributes in zip(span.events, span.event_attributes, strict=True):
            event = f"{where}, event {name!r}"
            if name == "exception":
                self._attributes(self._registry.exception, event, attributes, span.trace_id)
            else:
                self._add("missing_event", event, "the registry has no such span event", span.trace_id)

    # --- lines ---

    def line(self, line: Line) -> None:
        self.lines += 1
        fields = line.fields
        where = f"{line.service} line {line.message!r}"
        for name in LINE_FIELDS:
            if not isinstance(fields.get(name), str):
                self._add("required_attribute_not_present", where, f"no field {name}", line.trace_id)
        event = self._registry.event(line.service, fields)
        own = {name: value for name, value in fields.items() if name not in (*LINE_FIELDS, *CONTEXT_FIELDS)}
        if event is None:
            self._add("missing_event", where, "the registry has no such message", line.trace_id)
            return
        where = f"{line.service} line {event.line!r}"
        if event.level not in ("any", line.level):
            self._add("unexpected_level", where, f"is {line.level}, not {event.level}", line.trace_id)
        self._signal(event, line.service, where, line.trace_id)
        self._attributes(event.uses, where, own, line.trace_id)

    # --- metrics ---

    def metrics(self, service: str, text: str) -> None:
        """A page of metrics in the OpenMetrics format.

        Raises:
            ValueError: when it is not in that format.
        """
        for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
            metric = self._metric(family.name)
            where = f"{service} metric {metric.prometheus if metric else family.name}"
            if metric is None or service not in metric.services:
                self._add("missing_metric", where, "the registry has no such metric of this service")
                continue
            self._signal(metric, service, where)
            if family.type != metric.instrument:
                self._add("unexpected_instrument", where, f"is a {family.type}, not a {metric.instrument}")
            for sample in family.samples:
                self.samples += 1
                labels = {name: value for name, value in sample.labels.items() if name not in HISTOGRAM_LABELS}
                trace_id = sample.exemplar.labels.get("trace_id", "") if sample.exemplar else ""
                self._attributes(metric.uses, where, labels, trace_id, label_of=(service, metric.prometheus))

    def _metric(self, family: str) -> Metric | None:
        metrics = self._registry.metrics
        return metrics.get(family) or metrics.get(f"{family}_total")

    # --- attributes ---

    def _signal(self, signal: Signal, service: str, where: str, trace_id: str = "") -> None:
        self._seen.add((service, signal.name))
        if (stage := signal.stage_of(service)) > self._stage:
            self._add("wrong_stage", where, f"comes with stage {stage}", trace_id)

    def _attributes(
        self,
        uses: Mapping[str, Use],
        where: str,
        values: Mapping[str, Any],
        trace_id: str,
        label_of: tuple[str, str] | None = None,
    ) -> None:
        """Compare attributes with those that the registry declares.

        Args:
            label_of: the service and the metric, if the values are its labels: those are always text.
        """
        for name, value in values.items():
            use = uses.get(name)
            if use is None:
                self._unexpected(where, name, trace_id)
                continue
            attribute = use.attribute
            if attribute.stability != "stable":
                self.unstable.add(attribute.key)
            if not (_is_label(value, attribute) if label_of else _has_type(value, attribute)):
                kind = type(value).__name__
                self._add("type_mismatch", where, f"{name} is {value!r} ({kind}), not {attribute.type}", trace_id)
            elif attribute.members and value not in attribute.members:
                self._add("undefined_enum_variant", where, f"{name} is {value!r}", trace_id)
            if label_of:
                known = self._label_values.setdefault((*label_of, name), set())
                known.add(value)
                if len(known) > MAX_LABEL_VALUES:
                    self._add("high_cardinality_label", where, f"{name} has more than {MAX_LABEL_VALUES} values")
        for name, use in uses.items():
            if use.level == REQUIRED and name not in values:
                self._add("required_attribute_not_present", where, f"no {name}", trace_id)

    def _known(self, where: str, values: Mapping[str, Any], trace_id: str) -> None:
        """Check the attributes of a span that is not declared: each must at least exist in the registry."""
        for name in values:
            if name not in self._registry.attributes:
                self._unexpected(where, name, trace_id)

    def _unexpected(self, where: str, name: str, trace_id: str) -> None:
        if name in self._registry.attributes:
            self._add("unexpected_attribute", where, f"{name} is declared, but not here", trace_id)
        else:
            self._add("missing_attribute", where, f"the registry has no {name} here", trace_id)

    def _add(self, kind: str, where: str, what: str, trace_id: str = "") -> None:
        finding = self._findings.setdefault((kind, where, what), Finding(kind, where, what))
        finding.count += 1
        finding.trace_id = finding.trace_id or trace_id


def _has_type(value: Any, attribute: Attribute) -> bool:
    accepted = TYPES[attribute.type]
    return isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))


def _is_label(value: str, attribute: Attribute) -> bool:
    return attribute.type != "int" or re.fullmatch(r"-?\d+", value) is not None


def _has_a_value(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a span's name contains the value of an attribute that differs between requests."""
    usual = {str(attributes.get(key)) for key in ("http.request.method", "http.route")}
    return any(len(text) > 2 and text in name for text in {str(value) for value in attributes.values()} - usual)
