"""What a stage consists of: from its files, and from a lab that runs it and uses all of its features."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from lab.client import DIE_SERVICE, Lab
from lab.diff.temporary import temporary_lab
from lab.paths import DASHBOARDS
from lab.signals import OPENMETRICS, PROCESS_METRICS, SPAN_KINDS, Span, parse_families
from lab.supervise import stages
from lab.supervise.stages import POSTGRES

ROLL, BATCH = "/roll?die=fair", "/roll-async?die=fair&times=3"
MAX_ROLLS = 200  # of the risky die until one fails


class Item(NamedTuple):
    """Something that a stage has.

    Attributes:
        value: is compared: an item of the same name with another value has changed.
        note: a remark for people, which is not compared.
    """

    value: str = ""
    note: str = ""


class Trace(NamedTuple):
    """The result of one request: the body of its response, and its spans as the lines of a tree."""

    body: str
    tree: tuple[str, ...]


Section = dict[str, Item]


@dataclass
class Portrait:
    """What a stage consists of.

    Attributes:
        sections: the items of each kind by name, such as ``{"Routes": {"dice-roller GET /roll": Item("die")}}``.
        common: the metrics that every service has.
        traces: the traces of the requests that are sent to each stage, by path.
    """

    number: int
    sections: dict[str, Section]
    common: frozenset[str] = frozenset()
    traces: dict[str, Trace] = field(default_factory=dict)


async def portray(numbers: Sequence[int], seed: int, static: bool = False) -> list[Portrait]:
    """What each of these stages consists of; with ``static``, only what the files show.

    Raises:
        LabError: when a stage does not start, or does not respond.
    """
    portraits = [_static(number) for number in numbers]
    if not static:
        results = await asyncio.gather(*(_observe(portrait, seed) for portrait in portraits), return_exceptions=True)
        for result in results:  # once all labs are stopped
            if isinstance(result, BaseException):
                raise result
    return portraits


# --- from files ---


def _static(number: int) -> Portrait:
    stage = stages.load(number)
    services = {service.name: Item() for service in stage.services} | ({POSTGRES: Item()} if stage.postgres else {})
    settings = {name: Item(value) for name, value in stage.variables.items()}
    return Portrait(number, {"Settings": settings, "Services": services, "Panels": _panels(number)})


def _panels(number: int) -> Section:
    """The panels of a stage's dashboard, each with the name of its row."""
    panels: Section = {}
    row = ""
    for panel in json.loads((DASHBOARDS / f"stage-{number}.json").read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            panels[panel["title"]] = Item(note=f"in {row}")
    return panels


# --- from a running lab ---


async def _observe(portrait: Portrait, seed: int) -> None:
    """Start the stage, and add what it exposes and writes."""
    async with temporary_lab(portrait.number, seed) as (lab, stop):
        async with lab:
            used = await _use(lab)
            documents = {
                service: (await lab.fetch(f"{url}/openapi.json")).json for service, url in lab.services.items()
            }
            pages = {
                service: (await lab.fetch(f"{url}/metrics", Accept=OPENMETRICS)).text
                for service, url in lab.services.items()
            }
        await stop()  # services write their last spans and lines when they stop
        ids = {request.trace_id for request in used}
        # In the order of their start, without the spans of this command's own requests for documents and metrics.
        spans = sorted((span for span in lab.spans() if span.trace_id in ids), key=lambda span: span.start)
        sections = {
            "Routes": _routes(documents),
            "Metrics": _metrics(pages),
            "Log fields": _log_fields(lab),
            "Spans": _spans(spans),
            "Span attributes": _attributes(spans),
        }
    panels = portrait.sections.pop("Panels")
    portrait.sections |= sections | {"Panels": panels}
    metrics = [name.partition(" ") for name in sections["Metrics"]]
    names = [{name for owner, _, name in metrics if owner == service} for service in pages]
    portrait.common = frozenset(set.intersection(*names))
    for request in used:
        if request.path in (ROLL, BATCH):
            tree = _tree([span for span in spans if span.trace_id == request.trace_id])
            portrait.traces[request.path] = Trace(request.body, tuple(tree))


@dataclass(frozen=True)
class Used:
    """A request that was sent: the status and body of its response, and its trace id."""

    path: str
    status: int
    body: str
    trace_id: str


async def _use(lab: Lab) -> list[Used]:
    """Use every feature. :data:`ROLL` and :data:`BATCH` come first, so that the seed determines their results."""
    capabilities = await lab.fetch_capabilities()
    used: list[Used] = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as user:

        async def request(method: str, path: str, base: str = lab.front, **form: str) -> Used:
            async with user.request(method, f"{base}{path}", data=form or None, allow_redirects=False) as response:
                body = (await response.text()).strip()
                used.append(Used(path, response.status, body, response.headers.get("X-Trace-Id", "")))
                return used[-1]

        if capabilities.sign_in:
            await request("POST", "/sign-in", name="dicelab diff")
        await request("GET", ROLL)
        if capabilities.max_times:
            await request("GET", BATCH)
        for _ in range(MAX_ROLLS):
            if (await request("GET", "/roll?die=risky")).status == 500:
                break
        await request("GET", "/roll?die=nosuch")
        if DIE_SERVICE in lab.services:
            await request("GET", "/dice", lab.url(DIE_SERVICE))
        if capabilities.max_times:
            await request("GET", "/roll-async?die=risky&times=30")
        if capabilities.sign_in:
            await request("POST", "/sign-out")
    return used


def _routes(documents: Mapping[str, Any]) -> Section:
    return {
        f"{service} {method.upper()} {path}": Item(
            ", ".join(entry["name"] for entry in operation.get("parameters", []))
        )
        for service, document in documents.items()
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def _metrics(pages: Mapping[str, str]) -> Section:
    return {
        f"{service} {family.name}": Item(f"{{{', '.join(family.labels)}}}" if family.labels else "", family.kind)
        for service, page in pages.items()
        for family in parse_families(page)
        if not family.name.startswith(PROCESS_METRICS)
    }


def _log_fields(lab: Lab) -> Section:
    kinds = {str: "string", int: "integer", float: "number", bool: "boolean"}
    fields: Section = {}
    writers: dict[str, list[str]] = defaultdict(list)
    for service in reversed(list(lab.services)):
        for line in lab.lines(service):
            if "source" in line.fields:  # a library's line
                continue
            for name, value in line.fields.items():
                if service not in writers[name]:
                    writers[name].append(service)
                fields[name] = Item(kinds.get(type(value), "object"), f"on lines of {', '.join(writers[name])}")
    return fields


def _spans(spans: Iterable[Span]) -> Section:
    return {f"{span.service} {_name(span)}": Item(SPAN_KINDS[span.kind]) for span in spans}


def _attributes(spans: Iterable[Span]) -> Section:
    found: Section = {}
    for span in spans:
        for name in sorted(span.attributes):
            found.setdefault(name, Item(note=f"on {span.service} {_name(span)}"))
    return found


def _name(span: Span) -> str:
    """A span's name, with N in place of the number of a roll in a batch."""
    return re.sub(r" \d+$", " N", span.name)


def _tree(spans: Sequence[Span]) -> list[str]:
    """The spans of a trace as lines: service, branches, name; siblings in the order of their start."""
    ids = {span.span_id for span in spans}

    def below(parents: Iterable[Span], indent: str) -> list[str]:
        lines = []
        siblings = sorted(parents, key=lambda span: span.start)
        for span in siblings:
            last = span is siblings[-1]
            branch = "" if not span.parent_id or span.parent_id not in ids else "└─ " if last else "├─ "
            lines.append(f"{span.service:12} {indent}{branch}{span.name}")
            children = [child for child in spans if child.parent_id == span.span_id]
            lines += below(children, indent + ("" if not branch else "   " if last else "│  "))
        return lines

    return below([span for span in spans if span.parent_id not in ids], "")
