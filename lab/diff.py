"""``dicelab diff A B``: shows what changed between two stages, derived from the stages themselves.

The settings come from the stages' env files, and the panels from their dashboards. For the rest, the command starts
both stages, uses every feature of each, stops them, and compares their OpenAPI documents, ``/metrics``, log lines and
spans.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console

from lab import LabError
from lab.client import DIE_SERVICE, Lab
from lab.paths import DASHBOARDS
from lab.signals import OPENMETRICS, PROCESS_METRICS, SPAN_KINDS, Span, parse_families
from lab.supervise import stages
from lab.supervise.rundir import RunDir
from lab.supervise.stages import POSTGRES, SERVICES
from lab.terminal import say

ROLL, BATCH = "/roll?die=fair", "/roll-async?die=fair&times=3"
ROLL_DELAY = "0.01"  # seconds
MAX_ROLLS = 200  # of the risky die until one fails
ATTEMPTS = 5  # at finding free ports
PORTS = range(32_000, 32_700)  # below the ephemeral ports
# Environment variables that configure a service: they would change the result on this machine.
CONFIGURING = re.compile(
    r"OTEL_|DATABASE_URL|ROLL_|TRACES_|TELEMETRY|DB_|DICE_|LOG_|RANDOM_SEED|SESSION|ALLOWED_HOSTS|WORKERS_DIR|"
    r"(TEMPO|LOKI|PROMETHEUS|GRAFANA)_URL|ASYNC_ROLLS|SIGN_IN|MAX_|PORT$|HOST$"
)


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        before, after: numbers of stages.
        seed: the seed of the rolls in both stages.
        static: compare files only; start no lab.
    """

    before: int
    after: int
    seed: int = 7
    static: bool = False
    json: bool = False


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


def run(options: Options, console: Console) -> int:
    """Run the command.

    Raises:
        LabError: when a stage does not start, or does not respond.
    """
    before, after = asyncio.run(portray((options.before, options.after), options.seed, options.static))
    if options.json:
        print(json.dumps(document(before, after), indent=2, ensure_ascii=False))
    else:
        for line in text(before, after):
            say(console, line)
    return 0


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


# --- from running labs ---


async def _observe(portrait: Portrait, seed: int) -> None:
    """Start the stage, and add what it exposes and writes."""
    async with _temporary_lab(portrait.number, seed) as (lab, stop):
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
    names = [{name.partition(" ")[2] for name in sections["Metrics"] if _service(name) == service} for service in pages]
    portrait.common = frozenset(set.intersection(*names))
    for request in used:
        if request.path in (ROLL, BATCH):
            tree = _tree([span for span in spans if span.trace_id == request.trace_id])
            portrait.traces[request.path] = Trace(request.body, tuple(tree))


@asynccontextmanager
async def _temporary_lab(stage: int, seed: int) -> AsyncIterator[tuple[Lab, Callable[[], Any]]]:
    """A lab in a temporary directory, and the function that stops it."""
    directory = Path(tempfile.mkdtemp(prefix="dicelab-diff-"))
    run_dir = RunDir(directory / "run")
    environ = {name: value for name, value in os.environ.items() if not CONFIGURING.match(name)}
    environ |= {"RANDOM_SEED": str(seed)}

    async def dicelab(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab.cli", *arguments, "--run-dir", str(run_dir.path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def stop() -> None:
        await dicelab("down")

    try:
        for attempt in range(ATTEMPTS):
            port = str(_free_base_port())
            status, said = await dicelab(
                "up", "--detach", "--stage", str(stage), "--base-port", port, "--roll-delay", ROLL_DELAY
            )
            if status == 0:
                break
            if "already in use" not in said or attempt == ATTEMPTS - 1:
                reason = said.splitlines()[-1:] or ["it printed nothing"]
                raise LabError(f"stage {stage} does not start: {reason[0].removeprefix('dicelab: ')}")
        yield Lab.in_run_dir(run_dir.path), stop
    finally:
        await asyncio.shield(stop())
        shutil.rmtree(run_dir.postgres.resolve(), ignore_errors=True)  # as root, the data is elsewhere, behind a link
        shutil.rmtree(directory, ignore_errors=True)


_BASE_PORTS = cycle(random.sample(range(PORTS.start, PORTS.stop, len(SERVICES)), len(PORTS) // len(SERVICES)))


def _free_base_port() -> int:
    """A base port that this command has not used before, and from which the services' ports are free now."""
    for base in islice(_BASE_PORTS, len(PORTS)):
        with ExitStack() as sockets, suppress(OSError):
            for service in SERVICES:
                sockets.enter_context(socket.create_server(("127.0.0.1", base + service.port_offset)))
            return base
    raise LabError(f"no free ports from {PORTS.start} to {PORTS.stop}")


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


# --- the comparison ---


@dataclass(frozen=True)
class Changes:
    """The differences in one section.

    Attributes:
        changed: the value before and after, by name.
        common: metrics of a new service that every service has, by service; they are left out of ``added``.
    """

    added: Section
    removed: Section
    changed: dict[str, tuple[str, str]]
    common: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.common)


def _changes(before: Section, after: Section, common: frozenset[str]) -> Changes:
    added = {name: item for name, item in after.items() if name not in before}
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in list(added):
        service, _, metric = name.partition(" ")
        if metric in common:
            del added[name]
            grouped[service].append(metric)
    return Changes(
        added,
        {name: item for name, item in before.items() if name not in after},
        {
            name: (before[name].value, item.value)
            for name, item in after.items()
            if name in before and before[name].value != item.value
        },
        grouped,
    )


def _service(name: str) -> str:
    return name.partition(" ")[0]


def _all_changes(before: Portrait, after: Portrait) -> dict[str, Changes]:
    common = before.common & after.common
    return {name: _changes(before.sections[name], after.sections[name], common) for name in after.sections}


def text(before: Portrait, after: Portrait) -> list[str]:
    """The comparison as lines for people."""
    lines = [f"Stage {before.number} → stage {after.number}"]
    for section, change in _all_changes(before, after).items():
        if not change:
            continue
        lines += ["", section]
        for name, (old, new) in change.changed.items():
            lines.append(f"  ~ {name}: {old or 'nothing'} → {new or 'nothing'}")
        lines += [f"  - {_words(section, name, item)}" for name, item in change.removed.items()]
        lines += [f"  + {_words(section, name, item)}" for name, item in change.added.items()]
        lines += [
            f"  + {service}, as every service: {', '.join(sorted(names))}" for service, names in change.common.items()
        ]
    for request in dict.fromkeys([*before.traces, *after.traces]):
        lines += ["", *_side_by_side(request, before, after)]
    return lines


def _words(section: str, name: str, item: Item) -> str:
    joined = f"{name}={item.value}" if section == "Settings" else name
    if section == "Metrics":
        joined = f"{name}{item.value}"
    elif section == "Routes":
        joined = f"{name}?{item.value.replace(', ', '&')}" if item.value else name
    elif section in ("Spans", "Log fields"):
        joined = f"{name} ({item.value})"
    return f"{joined}, {item.note}" if item.note else joined


def _side_by_side(request: str, before: Portrait, after: Portrait) -> list[str]:
    columns = []
    for portrait in (before, after):
        trace = portrait.traces.get(request)
        head = f"stage {portrait.number}: {trace.body}" if trace else f"stage {portrait.number}: no such route"
        columns.append([head, *(trace.tree if trace else ())])
    width = max(map(len, columns[0])) + 3
    rows = [f"{left:{width}}{right}".rstrip() for left, right in zip_longest(*columns, fillvalue="")]
    return [f"GET {request}", *(f"  {row}" for row in rows)]


def document(before: Portrait, after: Portrait) -> dict[str, Any]:
    """The comparison as JSON: ``added``, ``removed`` and ``changed`` for each section, and ``traces``."""
    return {
        "before": before.number,
        "after": after.number,
        **{
            section.lower().replace(" ", "_"): {
                "added": [{"name": name, "value": item.value, "note": item.note} for name, item in change.added.items()]
                + [
                    {
                        "name": f"{service} {name}",
                        "value": after.sections[section][f"{service} {name}"].value,
                        "note": "",
                    }
                    for service, names in change.common.items()
                    for name in names
                ],
                "removed": [
                    {"name": name, "value": item.value, "note": item.note} for name, item in change.removed.items()
                ],
                "changed": [{"name": name, "before": old, "after": new} for name, (old, new) in change.changed.items()],
            }
            for section, change in _all_changes(before, after).items()
        },
        "traces": [
            {
                "request": request,
                **{
                    side: {"answer": trace.body, "tree": trace.tree} if trace else None
                    for side, portrait in (("before", before), ("after", after))
                    for trace in [portrait.traces.get(request)]
                },
            }
            for request in dict.fromkeys([*before.traces, *after.traces])
        ],
    }
