"""The checks of ``dicelab check``, each for one feature of a running lab.

A check is a coroutine function that takes a :class:`Subject` and returns a short description of what it found. It
raises :class:`~lab.client.Missing` when the feature is missing, and :class:`~lab.client.NotRunning` when the engine
that would show it does not run. Functions whose names are imperatives (``roll``) use the lab; the others look for the
telemetry of that use.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

from lab.client import DIE_SERVICE, FRONTEND, ROLLER, Lab, Missing, NotRunning
from lab.paths import DASHBOARDS
from lab.signals import Line, Span, parse_line, total
from lab.waiting import within

# Values for the variables of the dashboards' queries; any value shows whether there is data.
VARIABLES = {"$__rate_interval": "1m", "$__range": "15m", "$__auto": "1m", "$min_step": "5s", "$die": ".*"}
BATCH = 8  # rolls
USER = "dicelab check"
USAGE_TIMEOUT = 2.0  # seconds for the events of a visit to be in the log file
PIPELINE_TIMEOUT = 15.0  # seconds for them to be in Loki


@dataclass
class Subject:
    """The lab that is checked, and how earlier checks have used it.

    Attributes:
        stage: the stage that the lab is checked against.
        roll, batch, traffic: trace ids of a roll, a batch, and a roll of ``dicelab traffic``.
        session_id: the session of a user who signed in, rolled and signed out.
    """

    lab: Lab
    stage: int
    roll: str = ""
    batch: str = ""
    traffic: str = ""
    session_id: str = ""


Check = Callable[[Subject], Awaitable[str]]


# --- services and endpoints ---


def ready(service: str) -> Check:
    async def check(subject: Subject) -> str:
        url = f"{subject.lab.url(service)}/readyz"
        response = await subject.lab.fetch(url)
        if response.status != 200:
            raise Missing(f"{url} answers {response.status}: {response.text[:200]}")
        return url

    return check


async def database_pool(subject: Subject) -> str:
    if await _metric(subject.lab, DIE_SERVICE, "database_connection_pool_size") < 1:
        raise Missing("database_connection_pool_size is 0 on the die-service's /metrics")
    return "the die-service holds connections"


async def roll(subject: Subject) -> str:
    front = subject.lab.front
    for attempt in range(3):
        trace = secrets.token_hex(16)
        response = await subject.lab.fetch(
            f"{front}/roll?die=fair", traceparent=f"00-{trace}-{secrets.token_hex(8)}-01"
        )
        subject.roll = response.trace_id
        if response.status == 200 and 1 <= response.json["roll"] <= 6:
            return f"rolled {response.json['roll']}, trace {subject.roll}"
        await asyncio.sleep(attempt)
    raise Missing(f"{front}/roll?die=fair answers {response.status}: {response.text[:200]}")


async def roll_batch(subject: Subject) -> str:
    front = subject.lab.front
    response = await subject.lab.fetch(f"{front}/roll-async?die=fair&times={BATCH}")
    subject.batch = response.trace_id
    if response.status != 200 or len(response.json["rolls"]) != BATCH:
        raise Missing(f"{front}/roll-async answers {response.status}: {response.text[:200]}")
    return f"total {response.json['total']}, trace {subject.batch}"


async def list_dice(subject: Subject) -> str:
    response = await subject.lab.fetch(f"{subject.lab.url(DIE_SERVICE)}/dice")
    if response.status != 200 or "fair" not in response.json["identifiers"]:
        raise Missing(f"/dice answers {response.status}: {response.text[:200]}")
    return ", ".join(response.json["identifiers"])


# --- metrics ---


def metrics(*names: tuple[str, str]) -> Check:
    """Each metric, given as (service, name), is above 0; services that the lab does not have are left out."""

    async def check(subject: Subject) -> str:
        lab = subject.lab
        for service, name in names:
            if service in lab.services and await _metric(lab, service, name) <= 0:
                raise Missing(f"{name} is 0 on the {service}'s /metrics after a roll")
        where = " and in Prometheus" if "prometheus" in lab.engines else ""
        return f"{', '.join(dict.fromkeys(name for _, name in names))} on /metrics{where}"

    return check


async def database_metrics(subject: Subject) -> str:
    found = await metrics((DIE_SERVICE, "database_queries_total"))(subject)
    if "postgres-exporter" not in subject.lab.engines:
        return found
    for name in ("pg_stat_database_numbackends", "pg_stat_activity_count", "pg_database_size_bytes"):
        await subject.lab.fetch_prometheus(name)
    return f"{found}, pg_* from the exporter"


async def _metric(lab: Lab, service: str, name: str) -> float:
    """The sum of a metric's samples on a service's ``/metrics``; where Prometheus runs, it must have them too."""
    samples = [sample for sample in await lab.fetch_samples(service) if sample.name == name]
    if not samples:
        raise Missing(f"no {name} on {lab.url(service)}/metrics")
    if "prometheus" in lab.engines:
        found = await lab.fetch_prometheus(f'sum({name}{{job="{service}"}})')
        if lab.remote:  # /metrics is that of one pod of several
            return float(found[0]["value"][1])
    return total(samples, name)


# --- logs ---


async def json_lines(subject: Subject) -> str:
    count = 0
    for service in subject.lab.services:
        for text in await subject.lab.fetch_texts(service):
            try:
                own = parse_line(text).service == service
            except ValueError:
                own = False
            if not own:
                raise Missing(f"a line of {service}.jsonl is not a JSON object of that service: {text[:100]}")
            count += 1
    return f"{count} lines"


async def lines_of_the_roll(subject: Subject) -> str:
    for service in subject.lab.services:
        await _logged(subject.lab, service, trace_id=subject.roll)
    return f"lines of {subject.roll[:8]}… from {', '.join(subject.lab.services)}"


async def lines_in_loki(subject: Subject) -> str:
    for service in subject.lab.services:
        await _in_loki(subject.lab, "operations", service, trace_id=subject.roll)
    return f"the same lines in Loki, from {', '.join(subject.lab.services)}"


async def usage_events(subject: Subject) -> str:
    lab = subject.lab
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as user:
        async with user.post(f"{lab.front}/sign-in", data={"name": USER}, allow_redirects=False) as response:
            if response.status != 303:
                raise Missing(f"/sign-in answers {response.status}")
        async with user.get(f"{lab.front}/roll?die=fair"):
            pass
        async with user.post(f"{lab.front}/sign-out", allow_redirects=False):
            pass
    missing: Missing | None = None
    async for _ in within(PIPELINE_TIMEOUT if lab.remote else USAGE_TIMEOUT):
        try:
            last = await _logged(lab, FRONTEND, usage=True, event_type="sign_out", username=USER)
            subject.session_id = last.fields["session_id"]
            for event in ("sign_in", "roll"):
                await _logged(lab, FRONTEND, usage=True, event_type=event, session_id=subject.session_id)
            return f"sign_in, roll, sign_out of {USER!r}"
        except Missing as error:
            missing = error
    assert missing is not None
    raise missing


async def usage_events_in_their_tenant(subject: Subject) -> str:
    event = {"usage": True, "session_id": subject.session_id}
    await _in_loki(subject.lab, "usage", FRONTEND, event_type="sign_out", **event)
    try:
        await _in_loki(subject.lab, "operations", FRONTEND, **event)
    except Missing:
        return "usage events in the tenant usage and not in operations"
    raise Missing("usage events are in Loki's tenant operations too")


async def _logged(lab: Lab, service: str, **fields: Any) -> Line:
    """The newest line of a service that has these fields."""
    found = await lab.fetch_lines(service, **fields)
    if not found:
        raise Missing(f"no line with {_words(fields)} in {'Loki' if lab.remote else lab.log_file(service)}")
    return found[0]


async def _in_loki(lab: Lab, tenant: str, service: str, **fields: Any) -> None:
    if not await lab.fetch_loki_lines(tenant, service, **fields):
        raise Missing(f"no line with {_words(fields)} in Loki, tenant {tenant}")


def _words(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


# --- traces ---


def span_of_the_roll(service: str, name: str) -> Check:
    async def check(subject: Subject) -> str:
        spans = await _trace(subject.lab, subject.roll)
        if not any((span.service, span.name) == (service, name) for span in spans):
            raise Missing(f"no span {name!r} of the {service} in trace {subject.roll}")
        return f"{len(spans)} spans of {', '.join(sorted({span.service for span in spans}))}"

    return check


async def propagation(subject: Subject) -> str:
    spans = await _trace(subject.lab, subject.roll)
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if span.service == ROLLER and span.name == "GET /roll":
            parent = by_id.get(span.parent_id)
            if parent is not None and parent.service == FRONTEND:
                return "the parent of the roller's span is one of the frontend"
    raise Missing(f"no span of the dice-roller below one of the frontend in trace {subject.roll}")


async def roll_across_services(subject: Subject) -> str:
    return await _across(subject.lab, subject.roll, *subject.lab.services)


async def rolls_of_the_batch(subject: Subject) -> str:
    return f"async roll batch with {len(await _batch_rolls(subject))} child spans"


async def overlap_of_the_rolls(subject: Subject) -> str:
    rolls = sorted(await _batch_rolls(subject), key=lambda span: span.start)
    overlapping = sum(after.start < before.end for before, after in pairwise(rolls))
    if not overlapping:
        raise Missing(f"no two rolls overlap in trace {subject.batch}")
    return f"{overlapping + 1} rolls overlap"


async def _batch_rolls(subject: Subject) -> list[Span]:
    spans = await _trace(subject.lab, subject.batch)
    batch = next((span for span in spans if span.name == "async roll batch"), None)
    rolls = [span for span in spans if batch and span.parent_id == batch.span_id]
    if sorted(span.name for span in rolls) != sorted(f"roll {index}" for index in range(1, BATCH + 1)):
        raise Missing(f"no batch span with {BATCH} rolls below it in trace {subject.batch}")
    return rolls


async def _trace(lab: Lab, trace_id: str) -> list[Span]:
    try:
        return await lab.fetch_trace(trace_id)
    except Missing:
        if await lab.fetch_sampling():
            raise NotRunning("the Collector keeps a sample of such traces") from None
        raise


async def _across(lab: Lab, trace_id: str, *services: str) -> str:
    seen = {span.service for span in await _trace(lab, trace_id)}
    if missing := set(services) - seen:
        raise Missing(f"trace {trace_id} lacks {', '.join(sorted(missing))}")
    return " → ".join(name for name in ("traffic", FRONTEND, ROLLER, DIE_SERVICE) if name in seen)


# --- dashboards ---


async def service_graph(subject: Subject) -> str:
    subject.lab.engine("tempo")
    await subject.lab.fetch_prometheus('traces_service_graph_request_total{client="frontend",server="dice-roller"}')
    return "frontend → dice-roller in Prometheus"


def panels(*titles: str) -> Check:
    """Each query of the panels with these titles finds data; if Grafana runs, it has the stage's dashboard."""

    async def check(subject: Subject) -> str:
        lab = subject.lab
        dashboard = json.loads((DASHBOARDS / f"stage-{subject.stage}.json").read_text())
        found = [panel for panel in dashboard["panels"] if panel["title"] in titles]
        for panel in found:
            for target in panel["targets"]:
                query = target.get("expr", "")
                for variable, value in VARIABLES.items():
                    query = query.replace(variable, value)
                try:
                    if panel["datasource"]["type"] == "loki":
                        await lab.fetch_loki(query, "usage")
                    else:
                        await lab.fetch_prometheus(query)
                except Missing as missing:
                    raise Missing(f"panel {panel['title']!r}: {missing}") from None
        names = ", ".join(panel["title"] for panel in found)
        if "grafana" not in lab.engines:
            return f"{names}: the queries find data"
        url = f"{lab.engines['grafana']}/api/dashboards/uid/{dashboard['uid']}"
        response = await lab.fetch(url)
        if response.status != 200:
            raise Missing(f"{url} answers {response.status}")
        return f"{names} in Grafana"

    return check


# --- experiments ---


async def run_traffic(subject: Subject) -> str:
    summary = await _command(
        subject.lab,
        "traffic",
        *("--users", "2", "--max-rolls", "2", "--think-time", "0", "--die", "fair", "--anonymous"),
    )
    if summary["failed"] or summary["rolls"]["came_out"] != summary["rolls"]["asked"]:
        raise Missing(f"dicelab traffic: {summary['failed']} requests failed, {summary['rolls']} rolls")
    subject.traffic = summary["slowest"][0]["trace_id"]
    return f"{summary['rolls']['came_out']} rolls of 2 users, trace {subject.traffic}"


async def traffic_across_services(subject: Subject) -> str:
    if subject.lab.remote and not subject.lab.state["otlp_endpoint"]:
        raise NotRunning("the Collector, where dicelab traffic sends its spans, is not reached", "otel-collector")
    return await _across(subject.lab, subject.traffic, "traffic", *subject.lab.services)


async def run_comparison(subject: Subject) -> str:
    summary = await _command(subject.lab, "compare", "--rounds", "1", "--times", "4", "--die", "fair")
    if any(side["failed"] for side in summary["sides"].values()):
        raise Missing(f"dicelab compare: {summary['sides']}")
    return f"4 rolls at once are {summary['speedup']['measured']}x as fast as one by one"


async def _command(lab: Lab, *arguments: str) -> dict[str, Any]:
    """The JSON that a command of ``dicelab`` prints about this lab."""
    where = ("--json", "--url", lab.front, "--run-dir", str(lab.run_dir))
    # The command reads the endpoint from the state file; a lab in containers or elsewhere has none.
    endpoint = lab.state.get("otlp_endpoint", "") if lab.containers is not None or lab.remote else ""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.cli", *arguments, *where),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else None,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise Missing(f"dicelab {arguments[0]} ended with {process.returncode}: {errors.decode()[-200:].strip()}")
    summary: dict[str, Any] = json.loads(output)
    return summary
