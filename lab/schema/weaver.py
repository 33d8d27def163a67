"""The telemetry of a lab, as input for ``weaver registry live-check --input-source FILE``.

Spans are passed unchanged. Metrics, labels, events and log fields get the names that the registry has for them. What is
not in the registry keeps its name, so that Weaver reports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.schema.judge import CONTEXT_FIELDS, HISTOGRAM_LABELS, LINE_FIELDS
from lab.schema.registry import Registry, Use
from lab.signals import SPAN_KINDS, STATUS_CODES, Line, Span

UNITS = {"_seconds": "s", "_bytes": "By"}

Sample = dict[str, Any]


def samples(
    registry: Registry, spans: Iterable[Span], lines: Iterable[Line], metrics: Mapping[str, str]
) -> list[Sample]:
    """Weaver's samples; ``metrics`` are pages in the OpenMetrics format by service.

    Raises:
        ValueError: when a page is not in that format.
    """
    found: list[Sample] = []
    resources: set[str] = set()
    for span in spans:
        if (process := str(span.resource.get("service.instance.id"))) not in resources:
            resources.add(process)
            found.append({"resource": {"attributes": _attributes(span.resource)}})
        found.append({"span": _span(span)})
    found += ({"log": _log(registry, line)} for line in lines)
    for page in metrics.values():
        found += ({"metric": metric} for metric in _metrics(registry, page))
    return found


def _span(span: Span) -> Sample:
    events = [
        {"name": name, "attributes": _attributes(attributes)}
        for name, attributes in zip(span.events, span.event_attributes, strict=True)
    ]
    return {
        "name": span.name,
        "kind": SPAN_KINDS[span.kind],
        "status": {"code": STATUS_CODES[span.status], "message": ""},
        "attributes": _attributes(span.attributes),
        "span_events": events,
        "span_links": [],
    }


def _log(registry: Registry, line: Line) -> Sample:
    event = registry.event(line.service, line.fields)
    own = {name: value for name, value in line.fields.items() if name not in (*LINE_FIELDS, *CONTEXT_FIELDS)}
    unknown = "unknown." + re.sub(r"[^a-z]+", "_", line.message.lower()).strip("_")
    return {
        "event_name": event.name if event else unknown,
        "severity_text": line.level,
        "body": line.message,
        "attributes": _attributes(_renamed(own, event.uses if event else {})),
        "trace_id": line.trace_id or None,
        "span_id": line.fields.get("span_id"),
    }


def _metrics(registry: Registry, page: str) -> Iterable[Sample]:
    for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
        metric = registry.metrics.get(family.name) or registry.metrics.get(f"{family.name}_total")
        uses = metric.uses if metric else {}
        unit = next((unit for suffix, unit in UNITS.items() if family.name.endswith(suffix)), "")
        points: list[Sample] = []
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in HISTOGRAM_LABELS}
            point = {"attributes": _attributes(_renamed(labels, uses, text=True))}
            if family.type != "histogram":
                points.append(point | {"value": sample.value})
            elif sample.name.endswith("_count"):
                points.append(point | {"count": int(sample.value), "sum": None, "min": None, "max": None})
        yield {
            "name": metric.name if metric else family.name,
            "instrument": family.type,
            # The names on /metrics tell the units seconds and bytes only; counts and ratios get the declared unit.
            "unit": metric.unit if metric and metric.unit.startswith(("{", "1")) and not unit else unit,
            "data_points": points,
        }


def _renamed(values: Mapping[str, Any], uses: Mapping[str, Use], text: bool = False) -> dict[str, Any]:
    """The values by attribute key. With ``text``, they are labels: those of integer attributes become numbers."""
    found = {}
    for name, value in values.items():
        use = uses.get(name)
        number = text and use and use.attribute.type == "int" and re.fullmatch(r"-?\d+", value)
        found[use.attribute.key if use else name] = int(value) if number else value
    return found


def _attributes(values: Mapping[str, Any]) -> list[Sample]:
    return [{"name": name, "value": value} for name, value in values.items()]
