"""Generates ``docs/telemetry.md`` from the registry and the template ``telemetry.md.jinja``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import jinja2

from lab.paths import DOCS
from lab.schema.registry import EVERY_SERVICE, REQUIRED, Attribute, Event, Metric, Registry, Signal, SpanType, Use
from lab.signals import PROCESS_METRICS

FILE = DOCS / "telemetry.md"
TEMPLATE = "telemetry.md.jinja"
HTTP_SERVER = "dicelab.http.server"  # the span type with the attributes that all server spans have

S = TypeVar("S", bound=Signal)


def telemetry(registry: Registry) -> str:
    """The text of the page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    metrics = list(registry.metrics.values())
    process = [metric for metric in metrics if metric.prometheus.startswith(PROCESS_METRICS)]
    common = [metric for metric in metrics if set(metric.services) == set(EVERY_SERVICE) and metric not in process]
    server = next(span for span in registry.spans if span.name == HTTP_SERVER)

    def uses(signal: Signal) -> str:
        """The attributes of a signal; for a server span, without those that all server spans have."""
        shared = server.uses if isinstance(signal, SpanType) and signal.kind == "server" and signal != server else {}
        return _uses(use for use in signal.uses.values() if use.attribute.key not in shared)

    return environment.get_template(TEMPLATE).render(
        common=common,
        own=_by_service(metric for metric in metrics if metric not in process and metric not in common),
        process=", ".join(f"`{metric.prometheus}`" for metric in process),
        label_uses=sorted({(name, use.attribute) for metric in metrics for name, use in metric.uses.items()}, key=str),
        fields=_fields(registry.events),
        events=_by_service(registry.events),
        spans=_by_service(registry.spans),
        http=_uses(server.uses.values()),
        exception=_uses(registry.exception.values()),
        resource=_uses(registry.resource.values()),
        conventions=registry.conventions,
        attributes=sorted(registry.attributes.values(), key=lambda one: (one.stage, one.key)),
        labels=lambda metric: _code(metric.uses),
        names=lambda span: _code(span.names),
        uses=uses,
        text=_text,
        values=_values,
    )


def _by_service(signals: Iterable[S]) -> list[tuple[int, str, S]]:
    """Each signal with its stage and service. A signal of every service is listed once, for all."""
    rows: list[tuple[int, str, S]] = []
    for signal in signals:
        if signal.services == tuple(EVERY_SERVICE):
            rows.append((signal.stage, "all", signal))
        else:
            rows += [(signal.stage_of(service), service, signal) for service in signal.services]
    return sorted(rows, key=lambda row: row[0])


def _fields(events: Iterable[Event]) -> list[tuple[int, str, Use]]:
    """The fields of log lines, each with its first stage."""
    found: dict[str, tuple[int, str, Use]] = {}
    for event in events:
        for name, use in event.uses.items():
            stage = use.attribute.stage or min(event.stage, found[name][0] if name in found else event.stage)
            found[name] = stage, name, use
    return sorted(found.values(), key=lambda row: row[0])


def _uses(uses: Iterable[Use]) -> str:
    """The names of the uses: required ones first, the others in parentheses."""
    uses = list(uses)
    required = _code(use.name for use in uses if use.level == REQUIRED)
    others = _code(use.name for use in uses if use.level != REQUIRED)
    return f"{required} ({others})".strip() if others else required


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _text(signal: Metric | SpanType) -> str:
    brief = signal.brief.removesuffix(".")
    return f"{brief}; {signal.note.removesuffix('.')}" if signal.note else brief


def _values(attribute: Attribute) -> str:
    brief = attribute.brief.removesuffix(".").replace("|", "\\|")
    return f"{brief}: {_code(attribute.members)}" if attribute.members else brief
