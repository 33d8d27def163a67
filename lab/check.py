"""``dicelab check``: is every feature of the running stage really there, end to end?

It rolls, with a trace id of its own where the stage takes one, and then looks for that very roll: on the
services' ``/metrics`` and in Prometheus, in the log files and Loki, in the trace files or Tempo. What travels takes a
moment to arrive, so each question is asked again until it is answered well or time is up.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from lab import LabError
from lab.supervise.rundir import RunDir
from lab.supervise.stages import STAGES

POLL = 0.2  # seconds
BATCH = 8
USER = "dicelab check"
LOKI_RANGE = 600.0  # seconds back that Loki is asked for


class NotRunning(Exception):
    """What a feature needs is not running here; its text names it."""


class Missing(Exception):
    """A feature is not there; the text says what was looked for and where."""


@dataclass
class Rolls:
    """What was rolled for the others to look for."""

    roll: str = ""  # trace ids
    batch: str = ""
    traffic: str = ""
    session: str = ""  # of a user who signed in, rolled and signed out


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    span_id: str
    parent_id: str
    start: int
    end: int
    failed: bool = False


@dataclass
class Lab:
    """The running lab, as its state file describes it."""

    stage: int
    run_dir: RunDir
    services: dict[str, str]  # name → URL
    engines: dict[str, str]
    session: aiohttp.ClientSession
    otlp_endpoint: str = ""  # where our own spans go; without, the run dir's state file says it
    rolls: Rolls = field(default_factory=Rolls)

    @property
    def front(self) -> str:
        return self.services.get("frontend", self.services["dice-roller"])

    def url(self, service: str) -> str:
        if service not in self.services:
            raise Missing(f"no {service} in {self.run_dir.state_file}")
        return self.services[service]

    async def get(self, url: str, **headers: str) -> tuple[int, str, str]:
        """Status, text and trace id of an answer."""
        async with self.session.get(url, headers=headers) as response:
            return response.status, await response.text(), response.headers.get("X-Trace-Id", "")

    async def metric(self, service: str, name: str) -> float:
        """The sum of a metric's samples on a service's page and, where Prometheus runs, there too."""
        url = f"{self.url(service)}/metrics"
        _, text, _ = await self.get(url)
        samples = [s.value for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
        if not samples:
            raise Missing(f"no {name} on {url}")
        if "prometheus" in self.engines:
            await self.prometheus(f'{name}{{job="{service}"}}')
        return sum(samples)

    async def prometheus(self, expression: str) -> None:
        if "prometheus" not in self.engines:
            raise NotRunning("prometheus")
        url = f"{self.engines['prometheus']}/api/v1/query"
        async with self.session.get(url, params={"query": expression}) as response:
            if not (await response.json())["data"]["result"]:
                raise Missing(f"no {expression} at {url}")

    def log_lines(self, service: str) -> list[str]:
        path = self.run_dir.logs / f"{service}.jsonl"
        if not path.exists():
            raise Missing(f"no {path}")
        return path.read_text().split("\n")[:-1]

    def logged(self, service: str, **fields: Any) -> dict[str, Any]:
        """The newest line in the log file that has these fields."""
        return _with_fields(reversed(self.log_lines(service)), fields, str(self.run_dir.logs / f"{service}.jsonl"))

    async def usage(self, expression: str) -> None:
        """A LogQL metric query finds data in the tenant of usage events."""
        for name in ("loki", "alloy"):
            if name not in self.engines:
                raise NotRunning(name)
        url = f"{self.engines['loki']}/loki/api/v1/query"
        async with self.session.get(url, params={"query": expression}, headers={"X-Scope-OrgID": "usage"}) as response:
            if not (await response.json())["data"]["result"]:
                raise Missing(f"no {expression} at {url}")

    async def in_loki(self, tenant: str, service: str, **fields: Any) -> dict[str, Any]:
        """The newest line in a tenant of Loki that has these fields."""
        for name in ("loki", "alloy"):
            if name not in self.engines:
                raise NotRunning(name)
        url = f"{self.engines['loki']}/loki/api/v1/query_range"
        contained = "".join(f' |= "{value}"' for value in fields.values() if isinstance(value, str))
        arguments = {
            "query": f'{{service_name="{service}"}}{contained}',
            "start": str(int(time.time() - LOKI_RANGE)),
            "limit": "1000",
        }
        async with self.session.get(url, params=arguments, headers={"X-Scope-OrgID": tenant}) as response:
            if response.status != 200:
                raise Missing(f"{url} answers {response.status}: {(await response.text())[:200]}")
            streams = (await response.json())["data"]["result"]
        values = sorted((value for stream in streams for value in stream["values"]), reverse=True)
        return _with_fields((line for _, line in values), fields, f"Loki, tenant {tenant}")

    async def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have arrived: in Tempo where it runs, else in the trace files."""
        if "tempo" in self.engines:
            url = f"{self.engines['tempo']}/api/v2/traces/{trace_id}"
            status, text, _ = await self.get(url, Accept="application/json")
            spans = _spans(json.loads(text).get("trace", {}), None) if status == 200 else []
            where = url
        else:
            spans = [span for path in sorted(self.run_dir.traces.glob("*.jsonl*")) for span in _file(path, trace_id)]
            where = str(self.run_dir.traces)
        if not spans:
            raise Missing(f"no trace {trace_id} in {where}")
        return spans


def _with_fields(lines: Iterable[str], fields: dict[str, Any], where: str) -> dict[str, Any]:
    for line in lines:
        document = json.loads(line)
        if isinstance(document, dict) and fields.items() <= document.items():
            return document
    looked = " ".join(f"{name}={value}" for name, value in fields.items())
    raise Missing(f"no line with {looked} in {where}")


def _file(path: Path, trace_id: str) -> list[Span]:
    lines = path.read_text().split("\n")[:-1]
    return [span for line in lines if trace_id in line for span in _spans(json.loads(line), trace_id)]


def _spans(document: dict[str, Any], trace_id: str | None) -> list[Span]:
    found = []
    for resource in document.get("resourceSpans", []):
        attributes = {entry["key"]: entry["value"] for entry in resource["resource"]["attributes"]}
        service = str(attributes["service.name"]["stringValue"])
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                if trace_id in (None, span["traceId"]):
                    found.append(
                        Span(
                            service,
                            span["name"],
                            span["spanId"],
                            span.get("parentSpanId", ""),
                            int(span["startTimeUnixNano"]),
                            int(span["endTimeUnixNano"]),
                            # A number in files, a name from Tempo.
                            span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
                        )
                    )
    return found


ROLLER, DICE, FRONT, TRAFFIC = "dice-roller", "die-service", "frontend", "traffic"
DASHBOARDS = Path(__file__).resolve().parent.parent / "grafana" / "dashboards"
# What Grafana fills into a query; any value will do to see whether there is data.
FILLED = {"$__rate_interval": "1m", "$__range": "15m", "$__auto": "1m", "$min_step": "5s", "$die": ".*"}


# --- the rows: each returns a word on what it saw, or raises ---


def _ready(service: str) -> Callable[[Lab], Awaitable[str]]:
    async def check(lab: Lab) -> str:
        url = f"{lab.url(service)}/readyz"
        status, text, _ = await lab.get(url)
        if status != 200:
            raise Missing(f"{url} answers {status}: {text[:200]}")
        return url

    return check


async def _postgres(lab: Lab) -> str:
    if await lab.metric("die-service", "database_connection_pool_size") < 1:
        raise Missing("database_connection_pool_size is 0 on the die-service's /metrics")
    return "the die-service holds connections"


async def _roll(lab: Lab) -> str:
    for attempt in range(3):
        wanted = secrets.token_hex(16)
        headers = {"traceparent": f"00-{wanted}-{secrets.token_hex(8)}-01"}
        status, text, lab.rolls.roll = await lab.get(f"{lab.front}/roll?die=fair", **headers)
        if status == 200 and 1 <= json.loads(text)["roll"] <= 6:
            return f"rolled {json.loads(text)['roll']}, trace {lab.rolls.roll}"
        await asyncio.sleep(attempt)
    raise Missing(f"{lab.front}/roll?die=fair answers {status}: {text[:200]}")


async def _roll_async(lab: Lab) -> str:
    status, text, lab.rolls.batch = await lab.get(f"{lab.front}/roll-async?die=fair&times={BATCH}")
    if status != 200 or len(json.loads(text)["rolls"]) != BATCH:
        raise Missing(f"{lab.front}/roll-async answers {status}: {text[:200]}")
    return f"total {json.loads(text)['total']}, trace {lab.rolls.batch}"


async def _dice(lab: Lab) -> str:
    status, text, _ = await lab.get(f"{lab.url('die-service')}/dice")
    if status != 200 or "fair" not in json.loads(text)["identifiers"]:
        raise Missing(f"/dice answers {status}: {text[:200]}")
    return ", ".join(json.loads(text)["identifiers"])


def _metrics(*names: tuple[str, str]) -> Callable[[Lab], Awaitable[str]]:
    async def check(lab: Lab) -> str:
        for service, name in names:
            if service in lab.services and await lab.metric(service, name) <= 0:
                raise Missing(f"{name} is 0 on the {service}'s /metrics after a roll")
        where = " and in Prometheus" if "prometheus" in lab.engines else ""
        return f"{', '.join(dict.fromkeys(name for _, name in names))} on /metrics{where}"

    return check


async def _database_metrics(lab: Lab) -> str:
    said = await _metrics(("die-service", "database_queries_total"))(lab)
    if "postgres-exporter" not in lab.engines:
        return said
    for name in ("pg_stat_database_numbackends", "pg_stat_activity_count", "pg_database_size_bytes"):
        await lab.prometheus(name)
    return f"{said}, pg_* from the exporter"


async def _json_logs(lab: Lab) -> str:
    count = 0
    for service in lab.services:
        for line in lab.log_lines(service):
            try:
                good = json.loads(line)["logger"] == service
            except (ValueError, KeyError, TypeError):
                good = False
            if not good:
                raise Missing(f"a line of {service}.jsonl is no JSON object of its own: {line[:100]}")
            count += 1
    return f"{count} lines"


async def _log_context(lab: Lab) -> str:
    for service in lab.services:
        lab.logged(service, trace_id=lab.rolls.roll)
    return f"lines of {lab.rolls.roll[:8]}… from {', '.join(lab.services)}"


async def _aggregated(lab: Lab) -> str:
    for service in lab.services:
        await lab.in_loki("operations", service, trace_id=lab.rolls.roll)
    return f"the same lines in Loki, from {', '.join(lab.services)}"


async def _routed(lab: Lab) -> str:
    event = {"usage": True, "session_id": lab.rolls.session}
    await lab.in_loki("usage", FRONT, event_type="sign_out", **event)
    try:
        await lab.in_loki("operations", FRONT, **event)
    except Missing:
        return "usage events in the tenant usage and not in operations"
    raise Missing("usage events are in Loki's tenant operations too")


async def _usage(lab: Lab) -> str:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as user:
        async with user.post(f"{lab.front}/sign-in", data={"name": USER}, allow_redirects=False) as response:
            if response.status != 303:
                raise Missing(f"/sign-in answers {response.status}")
        async with user.get(f"{lab.front}/roll?die=fair"):
            pass
        async with user.post(f"{lab.front}/sign-out", allow_redirects=False):
            pass
    deadline = time.monotonic() + 2
    while True:
        try:
            session_id = lab.logged("frontend", usage=True, event_type="sign_out", username=USER)["session_id"]
            for event in ("sign_in", "roll"):
                lab.logged("frontend", usage=True, event_type=event, session_id=session_id)
            lab.rolls.session = session_id
            return f"sign_in, roll, sign_out of {USER!r}"
        except Missing:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL)


def _trace_has(*names: tuple[str, str]) -> Callable[[Lab], Awaitable[str]]:
    async def check(lab: Lab) -> str:
        spans = await lab.trace(lab.rolls.roll)
        for service, name in names:
            if not any((span.service, span.name) == (service, name) for span in spans):
                raise Missing(f"no span {name!r} of the {service} in trace {lab.rolls.roll}")
        return f"{len(spans)} spans of {', '.join(sorted({span.service for span in spans}))}"

    return check


async def _propagation(lab: Lab) -> str:
    spans = await lab.trace(lab.rolls.roll)
    ids = {span.span_id: span for span in spans}
    for span in spans:
        if span.service == "dice-roller" and span.name == "GET /roll":
            parent = ids.get(span.parent_id)
            if parent is not None and parent.service == "frontend":
                return "the roller's span hangs below the frontend's"
    raise Missing(f"no span of the dice-roller below one of the frontend in trace {lab.rolls.roll}")


async def _crosses(lab: Lab, trace_id: str, *services: str) -> str:
    seen = {span.service for span in await lab.trace(trace_id)}
    if missing := set(services) - seen:
        raise Missing(f"trace {trace_id} lacks {', '.join(sorted(missing))}")
    return " → ".join(name for name in (TRAFFIC, FRONT, ROLLER, DICE) if name in seen)


async def _distributed(lab: Lab) -> str:
    return await _crosses(lab, lab.rolls.roll, *lab.services)


async def _batch_rolls(lab: Lab) -> list[Span]:
    spans = await lab.trace(lab.rolls.batch)
    batch = next((span for span in spans if span.name == "async roll batch"), None)
    rolls = [span for span in spans if batch and span.parent_id == batch.span_id]
    if sorted(span.name for span in rolls) != sorted(f"roll {index}" for index in range(1, BATCH + 1)):
        raise Missing(f"no batch with {BATCH} rolls below it in trace {lab.rolls.batch}")
    return rolls


async def _children(lab: Lab) -> str:
    return f"async roll batch with {len(await _batch_rolls(lab))} rolls below it"


async def _concurrent(lab: Lab) -> str:
    rolls = sorted(await _batch_rolls(lab), key=lambda span: span.start)
    overlapping = sum(after.start < before.end for before, after in pairwise(rolls))
    if not overlapping:
        raise Missing(f"no two rolls overlap in trace {lab.rolls.batch}")
    return f"{overlapping + 1} rolls overlap"


async def _service_graph(lab: Lab) -> str:
    if "tempo" not in lab.engines:
        raise NotRunning("tempo")
    await lab.prometheus('traces_service_graph_request_total{client="frontend",server="dice-roller"}')
    return "frontend → dice-roller in Prometheus"


def _panels(*titles: str) -> Callable[[Lab], Awaitable[str]]:
    """The stage's own panels of these titles: each query finds data, and Grafana, where it runs, has the dashboard."""

    async def check(lab: Lab) -> str:
        dashboard = json.loads((DASHBOARDS / f"stage-{lab.stage}.json").read_text())
        panels = [panel for panel in dashboard["panels"] if panel["title"] in titles]
        for panel in panels:
            for target in panel["targets"]:
                query = target.get("expr", "")
                for variable, value in FILLED.items():
                    query = query.replace(variable, value)
                try:
                    await (lab.usage(query) if panel["datasource"]["type"] == "loki" else lab.prometheus(query))
                except Missing as missing:
                    raise Missing(f"panel {panel['title']!r}: {missing}") from None
        said = ", ".join(panel["title"] for panel in panels)
        if "grafana" not in lab.engines:
            return f"{said}: the queries find data"
        url = f"{lab.engines['grafana']}/api/dashboards/uid/{dashboard['uid']}"
        status, _, _ = await lab.get(url)
        if status != 200:
            raise Missing(f"{url} answers {status}")
        return f"{said} in Grafana"

    return check


async def _command(lab: Lab, *arguments: str) -> dict[str, Any]:
    """What one of our own commands says of this lab, as JSON."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "lab.cli",
            *arguments,
            "--json",
            "--url",
            lab.front,
            "--run-dir",
            str(lab.run_dir.path),
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": lab.otlp_endpoint} if lab.otlp_endpoint else None,
    )
    output, complaint = await process.communicate()
    if process.returncode:
        raise Missing(f"dicelab {arguments[0]} ended with {process.returncode}: {complaint.decode()[-200:].strip()}")
    summary: dict[str, Any] = json.loads(output)
    return summary


async def _traffic(lab: Lab) -> str:
    summary = await _command(
        lab, "traffic", *("--users", "2", "--max-rolls", "2", "--think-time", "0", "--die", "fair", "--anonymous")
    )
    if summary["failed"] or summary["rolls"]["came_out"] != summary["rolls"]["asked"]:
        raise Missing(f"dicelab traffic: {summary['failed']} requests failed, {summary['rolls']} rolls")
    lab.rolls.traffic = summary["slowest"][0]["trace_id"]
    return f"{summary['rolls']['came_out']} rolls of 2 users, trace {lab.rolls.traffic}"


async def _traffic_trace(lab: Lab) -> str:
    return await _crosses(lab, lab.rolls.traffic, TRAFFIC, *lab.services)


async def _performance(lab: Lab) -> str:
    summary = await _command(lab, "compare", "--rounds", "1", "--times", "4", "--die", "fair")
    if any(side["failed"] for side in summary["sides"].values()):
        raise Missing(f"dicelab compare: {summary['sides']}")
    return f"4 rolls at once are {summary['speedup']['measured']}x as fast as one by one"


# (feature, first stage, check), in the order of the feature matrix; the rolls come before what looks for them.
ROWS: tuple[tuple[str, int, Callable[[Lab], Awaitable[str]]], ...] = (
    ("Dice Roller API", 1, _ready(ROLLER)),
    ("Frontend", 2, _ready(FRONT)),
    ("Die Service", 3, _ready(DICE)),
    ("PostgreSQL", 5, _postgres),
    ("GET /roll", 1, _roll),
    ("GET /roll-async", 4, _roll_async),
    ("GET /dice", 3, _dice),
    ("Automatic HTTP metrics", 1, _metrics(*((name, "http_requests_total") for name in (ROLLER, DICE, FRONT)))),
    ("Custom business metrics", 1, _metrics((ROLLER, "dice_rolls_total"), (FRONT, "streamlit_button_clicks_total"))),
    ("Service-to-service metrics", 3, _metrics((ROLLER, "die_service_requests_total"))),
    ("Database metrics", 5, _database_metrics),
    ("Async operation metrics", 4, _metrics((ROLLER, "async_rolls_total"), (FRONT, "async_roll_requests_total"))),
    ("Structured JSON logs", 1, _json_logs),
    ("Trace context in logs", 1, _log_context),
    ("Log aggregation (Loki)", 1, _aggregated),
    ("Usage tracking logs", 6, _usage),
    ("Selective log routing", 6, _routed),
    ("Automatic instrumentation", 1, _trace_has((ROLLER, "GET /roll"))),
    ("Trace context propagation", 2, _propagation),
    ("Distributed traces", 2, _distributed),
    ("Parent/child spans", 4, _children),
    ("Concurrent operation traces", 4, _concurrent),
    ("Database query spans", 5, _trace_has((DICE, "SELECT"))),
    ("Request rate panels", 1, _panels("Request rate", "Frontend request rate", "Die-service request rate")),
    ("Latency percentiles", 1, _panels("Latency of a roll", "End-to-end latency", "Die-service latency")),
    ("Error rate tracking", 1, _panels("Service level", "Error rate by die", "Roller to die-service: errors")),
    ("Service dependency viz", 2, _service_graph),
    ("Database metrics panels", 5, _panels("Database connections", "Query rate", "Connection pool", "Database up")),
    ("Usage analytics panels", 6, _panels("Usage events", "Sign-ins")),
    ("Basic traffic generation", 1, _traffic),
    ("Multi-service traffic", 2, _traffic_trace),
    ("Performance testing", 4, _performance),
    # Resilience testing breaks the lab: it is asked for by name, dicelab chaos.
)


async def _answer(check: Callable[[Lab], Awaitable[str]], lab: Lab, deadline: float) -> str:
    while True:
        try:
            return await check(lab)
        except Missing:
            if time.monotonic() > deadline:
                raise
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                raise Missing(f"{type(error).__name__}: {error}") from None
        await asyncio.sleep(POLL)


async def _ask(make: Callable[[aiohttp.ClientSession], Lab], stage: int, timeout: float, console: Console) -> int:
    failed = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        lab = make(session)
        for feature, first, check in ROWS:
            if stage < first:
                continue
            try:
                said = await _answer(check, lab, time.monotonic() + timeout)
                mark, style = "✔", "green"
            except NotRunning as absent:
                said, mark, style = f"{absent} is not running", "–", "yellow"  # noqa: RUF001
            except Missing as missing:
                said, mark, style = str(missing), "✘", "red"
                failed += 1
            said = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", said)
            console.print(f"{mark} {feature:28} {said}", style=style, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{failed} missing" if failed else "All there.", style="red" if failed else "green")
    return 1 if failed else 0


def ask(make: Callable[[aiohttp.ClientSession], Lab], stage: int, timeout: float, console: Console) -> int:
    """Check the lab that ``make`` describes against a stage; returns 0 when nothing is missing.

    Args:
        timeout: seconds that each feature gets to show itself.

    Raises:
        LabError: when there is no such stage.
    """
    if stage not in STAGES:
        raise LabError(f"there is no stage {stage}; stages are {STAGES[0]} to {STAGES[-1]}")
    return asyncio.run(_ask(make, stage, timeout, console))


def check(run_dir: Path, stage: int | None, timeout: float, console: Console) -> int:
    """:func:`ask` about the lab that runs in a run dir, whose own stage is meant where none is said.

    Raises:
        LabError: when nothing runs there, or there is no such stage.
    """
    directory = RunDir(run_dir)
    state = directory.state()
    if state is None or directory.owner() is None:
        raise LabError(f"nothing runs in {directory.path}; start it with dicelab up")
    stage = int(state["stage"]) if stage is None else stage
    services = {entry["name"]: entry["url"] for entry in state["services"]}
    engines = {entry["name"]: entry["url"] for entry in state.get("engines", [])}
    return ask(lambda session: Lab(stage, directory, services, engines, session), stage, timeout, console)
