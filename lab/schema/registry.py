"""Reads ``otel/registry/``, which declares all telemetry of this lab.

The files are a semantic convention registry in the format of OpenTelemetry Weaver (``definition/2``); the lab uses a
part of that format. Information that the format has no place for is in ``annotations.dicelab``: the stage, the
services, and the names on ``/metrics`` and in log lines. The attributes of OpenTelemetry's own conventions come from
``conventions.json``, an excerpt, so that nothing has to be downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from lab.paths import OTEL

FOLDER = OTEL / "registry"
CONVENTIONS = "conventions.json"
# The services, each with the stage it comes with.
EVERY_SERVICE = {"dice-roller": 1, "frontend": 2, "die-service": 3}
EXPORTER = "exporter"
# Programs beside them that have metrics of their own.
OTHERS = {EXPORTER: 5}
REQUIRED = "required"
LIBRARY = "source"  # the log field that names the library in a library's line


@dataclass(frozen=True)
class Attribute:
    """An attribute.

    Attributes:
        type: string, int, double or boolean.
        members: the possible values of an enumeration; empty for any other attribute.
        stage: the first stage that has it; 0 for an attribute of OpenTelemetry's conventions.
    """

    key: str
    type: str
    brief: str
    note: str
    stability: str
    members: tuple[str, ...]
    stage: int


@dataclass(frozen=True)
class Use:
    """An attribute as a span, an event or a metric uses it.

    Attributes:
        name: its name there: the key, the log field or the label.
        level: required, recommended, conditionally_required or opt_in.
        condition: when a conditionally required attribute is required, in words.
    """

    attribute: Attribute
    name: str
    level: str
    condition: str = ""


@dataclass(frozen=True)
class Signal:
    """What a span type, an event and a metric have in common.

    Attributes:
        name: the span's type, the event's or the metric's name.
        stage: the first stage that has it.
        services: the services that emit it.
        uses: its attributes, by :attr:`Use.name`.
    """

    name: str
    brief: str
    note: str
    stability: str
    stage: int
    services: tuple[str, ...]
    uses: Mapping[str, Use]

    def stage_of(self, service: str) -> int:
        """The first stage at which a program emits it: a service, the exporter or a command (which has any stage)."""
        programs = EVERY_SERVICE | OTHERS
        return max(self.stage, programs[service]) if service in programs else 1


@dataclass(frozen=True)
class Metric(Signal):
    """A metric; ``prometheus`` is the name on ``/metrics``, without the suffixes of a histogram."""

    instrument: str
    unit: str
    prometheus: str


@dataclass(frozen=True)
class Event(Signal):
    """A log line; ``line`` is its message, in which ``{field}`` stands for a field's text and ``{}`` for any text."""

    level: str
    line: str

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether a line with these fields is this event."""
        return (LIBRARY in fields) == (LIBRARY in self.uses) and _matches(
            self.line, str(fields.get("message", "")), fields
        )


@dataclass(frozen=True)
class SpanType(Signal):
    """A type of span; ``names`` are its possible names, in which ``{attribute}`` stands for an attribute's text."""

    kind: str
    names: tuple[str, ...]

    def matches(self, name: str, attributes: Mapping[str, Any]) -> bool:
        return any(_matches(pattern, name, attributes) for pattern in self.names)


def _matches(pattern: str, text: str, values: Mapping[str, Any]) -> bool:
    parts = re.split(r"\{([^}]*)\}", pattern)  # text, placeholder, text, ...
    expression = "".join(
        re.escape(part) if index % 2 == 0 else re.escape(str(values.get(part, "\0"))) if part else ".+"
        for index, part in enumerate(parts)
    )
    return re.fullmatch(expression, text, re.DOTALL) is not None


@dataclass(frozen=True)
class Registry:
    """The registry.

    Attributes:
        attributes: by key.
        metrics: by their name on ``/metrics``.
        spans: in the order in which :meth:`span` tries them.
        resource: the attributes of every process.
        exception: the attributes of a span's ``exception`` event.
        conventions: the version of OpenTelemetry's conventions.
    """

    attributes: Mapping[str, Attribute]
    metrics: Mapping[str, Metric]
    events: tuple[Event, ...]
    spans: tuple[SpanType, ...]
    resource: Mapping[str, Use]
    exception: Mapping[str, Use]
    conventions: str

    @classmethod
    def read(cls, folder: Path = FOLDER) -> Self:
        """Read the files of a folder.

        Raises:
            OSError, KeyError, ValueError: when they are not such a registry, or refer to an unknown attribute.
        """
        sections = definitions(folder)
        excerpt = json.loads((folder / CONVENTIONS).read_text())
        attributes = {key: _convention(key, entry) for key, entry in excerpt["attributes"].items()}
        attributes |= {entry["key"]: _attribute(entry) for entry in sections["attributes"]}
        groups = {entry["id"]: entry["attributes"] for entry in sections["attribute_groups"]}

        def uses(entries: Iterable[Mapping[str, Any]], rename: str = "") -> dict[str, Use]:
            entries = list(entries)
            shared = [ref for entry in entries if "ref_group" in entry for ref in groups[entry["ref_group"]]]
            own = [entry for entry in entries if "ref" in entry]
            refined = {entry["ref"] for entry in own}
            found = [_use(e, attributes, rename) for e in (*(e for e in shared if e["ref"] not in refined), *own)]
            return {use.name: use for use in found}

        metrics = [
            Metric(
                **_common(entry, entry["name"], uses(entry.get("attributes", ()), "label")),
                instrument=entry["instrument"],
                unit=entry["unit"],
                prometheus=_ours(entry)["prometheus"],
            )
            for entry in sections["metrics"]
        ]
        spans = [
            SpanType(
                **_common(entry, entry["type"], uses(entry.get("attributes", ()))),
                kind=entry["kind"],
                names=tuple(re.findall(r"`([^`]+)`", entry["name"]["note"])),
            )
            for entry in sections["spans"]
        ]
        log_events = [entry for entry in sections["events"] if "line" in _ours(entry)]
        span_events = {entry["name"]: entry for entry in sections["events"] if "line" not in _ours(entry)}
        events = [
            Event(
                **_common(entry, entry["name"], uses(entry.get("attributes", ()), "field")),
                level=_ours(entry)["level"],
                line=_ours(entry)["line"],
            )
            for entry in log_events
        ]
        (entity,) = sections["entities"]
        return cls(
            attributes=attributes,
            metrics={metric.prometheus: metric for metric in metrics},
            events=tuple(events),
            spans=tuple(spans),
            resource=uses((*entity["identity"], *entity["description"])),
            exception=uses(span_events["exception"]["attributes"]),
            conventions=excerpt["version"],
        )

    def event(self, service: str, fields: Mapping[str, Any]) -> Event | None:
        """The event that matches a line, or ``None``."""
        return next((one for one in self.events if service in one.services and one.matches(fields)), None)

    def span(self, service: str, kind: str, name: str, attributes: Mapping[str, Any]) -> SpanType | None:
        """The type of a span, or ``None``."""
        candidates = (one for one in self.spans if one.kind == kind and service in one.services)
        return next((one for one in candidates if one.matches(name, attributes)), None)


# libyaml's parser, where PyYAML has it, is eight times as fast; reading the registry takes 0.4 s without it.
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SECTIONS = ("attributes", "attribute_groups", "spans", "metrics", "events", "entities")


def definitions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The definitions of all files of a registry, by section, in the order of the files' names."""
    merged: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for file in sorted(folder.glob("*.yaml")):
        document = yaml.load(file.read_text(), YAML)
        for section in SECTIONS:
            merged[section] += document.get(section, [])
    return merged


def references(folder: Path) -> set[str]:
    """The attributes that a registry refers to without defining them: those of OpenTelemetry's conventions."""

    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            if "ref" in node:
                yield node["ref"]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from walk(child)

    sections = definitions(folder)
    return set(walk([*sections.values()])) - {entry["key"] for entry in sections["attributes"]}


def _ours(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    ours: Mapping[str, Any] = entry.get("annotations", {}).get("dicelab", {})
    return ours


def _common(entry: Mapping[str, Any], name: str, uses: Mapping[str, Use]) -> dict[str, Any]:
    ours = _ours(entry)
    return {
        "name": name,
        "brief": entry["brief"].strip(),
        "note": entry.get("note", "").strip(),
        "stability": entry["stability"],
        "stage": ours["stage"],
        "services": tuple(ours.get("services", EVERY_SERVICE)),
        "uses": uses,
    }


def _use(entry: Mapping[str, Any], attributes: Mapping[str, Attribute], rename: str) -> Use:
    key = entry["ref"]
    level = entry.get("requirement_level", "recommended")
    condition = ""
    if isinstance(level, Mapping):
        ((level, condition),) = level.items()
    name = _ours(entry).get(rename, key.replace(".", "_")) if rename else key
    return Use(attributes[key], name, level, condition)


def _attribute(entry: Mapping[str, Any]) -> Attribute:
    kind, members = entry["type"], ()
    if isinstance(kind, Mapping):
        members = tuple(member["value"] for member in kind["members"])
        kind = "string"
    return Attribute(
        entry["key"],
        kind,
        entry["brief"].strip(),
        entry.get("note", "").strip(),
        entry["stability"],
        members,
        _ours(entry)["stage"],
    )


def _convention(key: str, entry: Mapping[str, Any]) -> Attribute:
    return Attribute(key, entry["type"], entry["brief"], "", entry["stability"], (), 0)
