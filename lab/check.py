"""``dicelab check``: checks end to end whether every feature of the running stage works.

It rolls dice, keeps the trace ids, and then looks for the telemetry of these rolls: on the services' ``/metrics`` and
in Prometheus, in the log files and Loki, in the trace files or Tempo. Telemetry takes a moment to arrive, so each check
is repeated until it succeeds or its time is up.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
from rich.console import Console

from lab import containers, features
from lab.client import DIE_SERVICE, FRONTEND, ROLLER, Absent, Lab, Missing, NotRunning
from lab.features import Check, Subject
from lab.terminal import say
from lab.waiting import until

POLL = 0.2  # seconds


class Row(NamedTuple):
    """One feature of the matrix, the first stage that has it, and how it is checked.

    Attributes:
        essential: whether the others depend on it: if it is missing, they are checked without waiting.
    """

    feature: str
    first_stage: int
    check: Check
    essential: bool = False


# In the order of the feature matrix. Rows that roll come before the rows that look for the telemetry of those rolls.
ROWS = (
    Row("Dice Roller API", 1, features.ready(ROLLER), essential=True),
    Row("Frontend", 2, features.ready(FRONTEND)),
    Row("Die Service", 3, features.ready(DIE_SERVICE)),
    Row("PostgreSQL", 5, features.database_pool),
    Row("GET /roll", 1, features.roll, essential=True),
    Row("GET /roll-async", 4, features.roll_batch),
    Row("GET /dice", 3, features.list_dice),
    Row(
        "Automatic HTTP metrics",
        1,
        features.metrics(*((service, "http_requests_total") for service in (ROLLER, DIE_SERVICE, FRONTEND))),
    ),
    Row(
        "Custom business metrics",
        1,
        features.metrics((ROLLER, "dice_rolls_total"), (FRONTEND, "streamlit_button_clicks_total")),
    ),
    Row("Service-to-service metrics", 3, features.metrics((ROLLER, "die_service_requests_total"))),
    Row("Database metrics", 5, features.database_metrics),
    Row(
        "Async operation metrics",
        4,
        features.metrics((ROLLER, "async_rolls_total"), (FRONTEND, "async_roll_requests_total")),
    ),
    Row("Structured JSON logs", 1, features.json_lines),
    Row("Trace context in logs", 1, features.lines_of_the_roll),
    Row("Log aggregation (Loki)", 1, features.lines_in_loki),
    Row("Usage tracking logs", 6, features.usage_events),
    Row("Selective log routing", 6, features.usage_events_in_their_tenant),
    Row("Automatic instrumentation", 1, features.span_of_the_roll(ROLLER, "GET /roll")),
    Row("Trace context propagation", 2, features.propagation),
    Row("Distributed traces", 2, features.roll_across_services),
    Row("Parent/child spans", 4, features.rolls_of_the_batch),
    Row("Concurrent operation traces", 4, features.overlap_of_the_rolls),
    Row("Database query spans", 5, features.span_of_the_roll(DIE_SERVICE, "SELECT")),
    Row("Request rate panels", 1, features.panels("Request rate", "Frontend request rate", "Die-service request rate")),
    Row("Latency percentiles", 1, features.panels("Latency of a roll", "End-to-end latency", "Die-service latency")),
    Row(
        "Error rate tracking", 1, features.panels("Service level", "Error rate by die", "Roller to die-service: errors")
    ),
    Row("Service dependency viz", 2, features.service_graph),
    Row(
        "Database metrics panels",
        5,
        features.panels("Database connections", "Query rate", "Connection pool", "Database up"),
    ),
    Row("Usage analytics panels", 6, features.panels("Usage events", "Sign-ins")),
    Row("Basic traffic generation", 1, features.run_traffic),
    Row("Multi-service traffic", 2, features.traffic_across_services),
    Row("Performance testing", 4, features.run_comparison),
    # Not "Resilience testing": that breaks the lab, so it is a command of its own, dicelab chaos.
)


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        stage: the stage to check against; ``None`` for the stage that runs.
        timeout: the time limit of each feature, in seconds. Without an essential feature the others get one attempt.
        compose: whether the lab runs in containers.
        addresses: the URLs of a lab elsewhere, each with the name of its part; the name is empty for the whole lab.
        schema: compare the telemetry with the registry, instead of checking the features.
        samples: with ``schema``, the file to which the telemetry is written for Weaver.
    """

    run_dir: Path
    stage: int | None
    timeout: float
    compose: bool
    addresses: Sequence[tuple[str, str]] = ()
    schema: bool = False
    samples: Path | None = None


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 when nothing is missing or violated, else 1.

    Raises:
        LabError: when no lab runs there.
    """
    stage = options.stage
    if options.compose or options.addresses:
        assert stage is not None  # the command line requires it
        if options.addresses:
            lab = Lab.elsewhere(options.run_dir, stage, dict(options.addresses))
        else:
            lab = Lab.in_containers(options.run_dir, asyncio.run(containers.find()))
    else:
        lab = Lab.in_run_dir(options.run_dir)
    stage = lab.stage if stage is None else stage
    if options.schema:
        from lab.schema import command  # imported here: the registry takes a while to read

        return command.run(lab, stage, options.samples, console)
    return asyncio.run(_check(lab, stage, options.timeout, console))


async def _check(lab: Lab, stage: int, timeout: float, console: Console) -> int:
    missing, patience = 0, timeout
    unchecked: list[NotRunning] = []
    async with lab:
        if lab.remote:
            await lab.find_engines()
        subject = Subject(lab, stage)
        for row in ROWS:
            if row.first_stage > stage:
                continue
            try:
                found = await _repeated(row.check, subject, time.monotonic() + patience)
                mark, style = "✔", "green"
            except NotRunning as reason:
                found, mark, style = str(reason), "–", "yellow"  # noqa: RUF001
                unchecked.append(reason)
            except Missing as reason:
                found, mark, style = str(reason), "✘", "red"
                missing += 1
                patience = 0.0 if row.essential else patience
            found = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", found)
            say(console, f"{mark} {row.feature:28} {found}", style)
    say(console, conclusion(missing, unchecked), "red" if missing else "green")
    return 1 if missing else 0


def conclusion(missing: int, unchecked: Sequence[NotRunning]) -> str:
    """The last line of the output: the result in a sentence."""
    text = f"{missing} missing" if missing else "All checked features work" if unchecked else "All features work."
    if unchecked:
        engines = sorted({reason.engine.capitalize() for reason in unchecked if reason.engine})
        text += f"; {len(unchecked)} not checked" + (f": no {', '.join(engines)}" if engines else "")
    return text


async def _repeated(check: Check, subject: Subject, deadline: float) -> str:
    """The result of a check, repeated until it succeeds.

    Raises:
        Missing: the last one, at the deadline; at once if the lab has no such service.
    """
    missing = Missing()
    async for _ in until(deadline, POLL):
        try:
            return await check(subject)
        except Absent:
            raise
        except Missing as error:
            missing = error
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError) as error:
            missing = Missing(f"{type(error).__name__}: {error}")
    raise missing
