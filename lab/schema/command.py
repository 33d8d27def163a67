"""``dicelab check --schema``: compares the telemetry of a running lab with the registry.

It reads the spans, log lines and metrics that exist, and rolls no dice: run ``dicelab check`` or ``dicelab traffic``
first.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from rich.console import Console

from lab import LabError
from lab.client import Lab
from lab.schema import weaver
from lab.schema.judge import Judge
from lab.schema.registry import OTHERS, Registry
from lab.signals import OPENMETRICS, Line, Span, parse_export, parse_time
from lab.terminal import say
from lab.waiting import gather

MAX_TRACES = 300  # the latest traces, which are fetched from Tempo
PARALLEL = 8
PROBE = "/probe?target=dice-roller&module=ready"  # of the exporter; rolls no die
END = "# EOF\n"  # of a page in the OpenMetrics format


@dataclass(frozen=True)
class Seen:
    """The telemetry of a lab; ``metrics`` are ``/metrics`` pages by service."""

    spans: list[Span]
    lines: list[Line]
    metrics: dict[str, str]

    def judge(self, registry: Registry, stage: int, services: list[str]) -> Judge:
        """A judge that has compared all of it with the registry."""
        judge = Judge(registry, stage, services)
        for span in self.spans:
            judge.span(span)
        for line in self.lines:
            judge.line(line)
        for service, page in self.metrics.items():
            judge.metrics(service, page)
        return judge


async def _look(lab: Lab) -> Seen:
    async with lab:
        return await look(lab)


async def look(lab: Lab) -> Seen:
    """Read the telemetry of a running lab, without that of earlier labs in the same run dir.

    Raises:
        LabError: when a service has no page of metrics.
    """
    since = parse_time(lab.state.get("started"))  # 0 where there can be no earlier lab
    lines = [
        line for service in lab.services for line in lab.lines(service) if not 0 < parse_time(line.timestamp) < since
    ]
    metrics = {}
    for service, urls in _pages(lab).items():
        metrics[service] = "".join([(await _page(lab, url)).removesuffix(END) for url in urls]) + END
    spans = (
        await _spans_of(lab, lines)
        if "tempo" in lab.engines
        else [span for span in lab.spans() if span.start >= since * 1e9]
    )
    return Seen(spans, lines, metrics)


def _pages(lab: Lab) -> dict[str, list[str]]:
    """The URLs of the metrics of each program whose metrics are in the registry."""
    pages = {name: [f"{url}/metrics"] for name, url in lab.services.items()}
    for name in OTHERS.keys() & lab.engines.keys():
        pages[name] = [f"{lab.engines[name]}/metrics", lab.engines[name] + PROBE]
    return pages


async def _page(lab: Lab, url: str) -> str:
    response = await lab.fetch(url, Accept=OPENMETRICS)
    if response.status != 200:
        raise LabError(f"{url} answers {response.status}")
    return response.text


async def _spans_of(lab: Lab, lines: list[Line]) -> list[Span]:
    """The spans of the traces that these lines name, from Tempo."""
    latest = list(dict.fromkeys(line.trace_id for line in reversed(lines) if line.trace_id))[:MAX_TRACES]
    # A trace that is not sampled, or has not arrived yet, has an empty document.
    exports = await gather(lab.fetch_export, latest, PARALLEL)
    return [span for export in exports for span in parse_export(export)]


def run(lab: Lab, stage: int, samples: Path | None, console: Console) -> int:
    """Print the verdict; returns 0 when there is no violation, else 1.

    Args:
        samples: the file to which the telemetry is written, as input for Weaver.

    Raises:
        LabError: when that file cannot be written.
    """
    registry = Registry.read()
    seen = asyncio.run(_look(lab))
    judge = seen.judge(registry, stage, list(_pages(lab)))
    if samples is not None:
        found = weaver.samples(registry, seen.spans, seen.lines, seen.metrics)
        try:
            samples.write_text(json.dumps(found))
        except OSError as error:
            raise LabError(f"{samples}: {error.strerror}") from None
    say(console, f"Seen: {judge.spans} spans, {judge.lines} lines, {judge.samples} samples.")
    for row in judge.coverage():
        say(console, f"{row.signal:8} {row.seen:3} of {row.declared:3} declared for stage {stage} were seen.")
        if row.unseen:
            say(console, fill(", ".join(row.unseen), 110, initial_indent="  not: ", subsequent_indent="  "))
    if judge.unstable:
        say(console, f"Not stable in OpenTelemetry's conventions: {', '.join(sorted(judge.unstable))}.")
    for finding in judge.findings:
        say(console, f"✘ {finding}", "red")
    count = len(judge.findings)
    conclusion = f"{count} kinds of violations of the registry" if count else "No violation of the registry"
    say(console, f"{conclusion}.", "red" if count else "green")
    return 1 if count else 0
