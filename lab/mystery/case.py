"""The telemetry of one game: spans, log lines and samples between its beginning and its end.

A game is scored on it, no matter whether it has just been played or was recorded and read from files.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from lab.client import Lab
from lab.mystery.samples import Scrape, window
from lab.rotated import open_files, whole_lines
from lab.signals import Span, escape_label, parse_export, parse_time
from lab.waiting import gather

TEMPO_TRACES = 3000  # that are fetched from Tempo, spread over the game; a game of three minutes has about as many
TEMPO_AT_ONCE = 10

Document = dict[str, Any]
_JOB = re.compile(r'(?<={)job="([\w-]+)"(?:,|(?=}))')  # the first label


@dataclass(frozen=True)
class Timed:
    """One sample of a scrape; ``kind`` is the type of its metric."""

    at: float
    service: str
    kind: str
    sample: Sample


@dataclass
class Case:
    """The telemetry of one game.

    Attributes:
        began, ended: in seconds since 1970.
        exports: OTLP JSON documents.
        lines: log lines, each a JSON object.
    """

    began: float
    ended: float
    exports: Sequence[Document]
    lines: Sequence[Document]
    scrapes: Sequence[Scrape] = field(default_factory=list)

    @cached_property
    def spans(self) -> list[Span]:
        return [span for export in self.exports for span in parse_export(export)]

    @cached_property
    def traces(self) -> dict[str, list[Span]]:
        """The spans by trace id."""
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found

    @cached_property
    def samples(self) -> list[Timed]:
        return [timed for scrape in self.scrapes for timed in _timed(scrape)]


def _timed(scrape: Scrape) -> Iterator[Timed]:
    for family in text_string_to_metric_families(scrape.text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            yield Timed(scrape.at, scrape.service, family.type, sample)


# --- from a running lab ---


async def collect(
    lab: Lab, began: float, ended: float, scrapes: Sequence[Scrape], evidence: Sequence[str] = ()
) -> Case:
    """The telemetry of a lab between two times, as far as it has arrived; the lab must be entered.

    Args:
        began, ended: in seconds since 1970.
        evidence: ids of traces that are always fetched.
    """
    lines = await asyncio.to_thread(lambda: list(_lines(lab, began, ended)))
    if "tempo" in lab.engines:
        exports = await _from_tempo(lab, lines, began, ended, evidence)
    else:
        exports = await asyncio.to_thread(lambda: list(_from_files(lab.directory.traces, began, ended)))
    return Case(began, ended, exports, lines, scrapes)


def _lines(lab: Lab, began: float, ended: float) -> Iterator[Document]:
    for line in _documents_since(lab.directory.logs, began):
        if began <= parse_time(line.get("timestamp")) <= ended:
            yield line


def _from_files(directory: Path, began: float, ended: float) -> Iterator[Document]:
    for export in _documents_since(directory, began):
        kept = _between(export, began, ended)
        if kept["resourceSpans"]:
            yield kept


async def _from_tempo(
    lab: Lab, lines: Iterable[Document], began: float, ended: float, evidence: Sequence[str]
) -> list[Document]:
    ids = list(dict.fromkeys(str(line["trace_id"]) for line in lines if line.get("trace_id")))
    chosen = dict.fromkeys([*evidence, *ids[:: -(-len(ids) // TEMPO_TRACES) or 1]])

    async def fetch(trace_id: str) -> Document:
        try:
            return await lab.fetch_export(trace_id)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
            return {}

    kept = [_between(export, began, ended) for export in await gather(fetch, chosen, TEMPO_AT_ONCE) if export]
    return [export for export in kept if export["resourceSpans"]]


def _documents_since(directory: Path, began: float) -> Iterator[Document]:
    """The documents in the files written since a time; each file once, even if it is rotated at the same time."""
    with ExitStack() as stack:
        for _, file in open_files(directory, stack):
            if os.fstat(file.fileno()).st_mtime < began:
                continue
            for line in whole_lines(file):
                try:
                    document = json.loads(line)
                except ValueError:  # a killed process may have left half a line
                    continue
                if isinstance(document, dict):
                    yield document


def _between(export: Document, began: float, ended: float) -> Document:
    """An OTLP document with only those spans that started in a time range."""

    def within(span: Mapping[str, Any]) -> bool:
        return began <= int(span["startTimeUnixNano"]) / 1e9 <= ended

    resources = []
    for resource in export.get("resourceSpans", []):
        scopes = [
            {**scope, "spans": spans}
            for scope in resource.get("scopeSpans", [])
            if (spans := [span for span in scope["spans"] if within(span)])
        ]
        if scopes:
            resources.append({**resource, "scopeSpans": scopes})
    return {"resourceSpans": resources}


# --- parts of it, as files ---


def write_window(case: Case, directory: Path, start: float, end: float, epoch: float, samples: bool) -> None:
    """Write the telemetry of a time range as the files of a run dir, shifted so that the range begins at ``epoch``.

    Args:
        start, end, epoch: in seconds since 1970.
        samples: whether the samples are written too.
    """
    shift = epoch - start
    for name in ("logs", "traces", "metrics"):
        (directory / name).mkdir(parents=True)
    with open(directory / "logs" / "window.jsonl", "w") as file:
        for line in case.lines:
            at = parse_time(line.get("timestamp"))
            if start <= at < end:
                moved = datetime.fromtimestamp(at + shift).astimezone().isoformat()
                file.write(json.dumps({**line, "timestamp": moved}) + "\n")
    with open(directory / "traces" / "window.jsonl", "w") as file:
        for export in case.exports:
            kept = _between(export, start, end)
            for resource in kept["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    scope["spans"] = [_shifted(span, round(shift * 1e9)) for span in scope["spans"]]
            if kept["resourceSpans"]:
                file.write(json.dumps(kept) + "\n")
    if samples:
        with open(directory / "metrics" / "window.jsonl", "wb") as rows:
            rows.writelines(row.line() for row in window(case.scrapes, start, end, shift))


def _shifted(span: Mapping[str, Any], nanoseconds: int) -> Document:
    times = ("startTimeUnixNano", "endTimeUnixNano")
    return {**span, **{name: str(int(span[name]) + nanoseconds) for name in times}}


def open_metrics(scrapes: Iterable[Scrape]) -> str:
    """All scrapes as one OpenMetrics text with timestamps; the service is the label ``job``."""
    kinds: dict[str, str] = {}
    groups: dict[str, dict[tuple[tuple[str, str], ...], dict[float, list[Sample]]]] = {}
    for scrape in sorted(scrapes, key=lambda one: one.at):
        for family in text_string_to_metric_families(scrape.text):  # type: ignore[no-untyped-call]
            kinds[family.name] = family.type
            for sample in family.samples:
                labels = {**sample.labels, "job": scrape.service}
                key = tuple(sorted((name, value) for name, value in labels.items() if name != "le"))
                times = groups.setdefault(family.name, {}).setdefault(key, {})
                times.setdefault(scrape.at, []).append(sample._replace(labels=labels))
    text = []
    for name, series in sorted(groups.items()):
        text.append(f"# TYPE {name} {kinds[name]}")
        for _, times in sorted(series.items()):
            for at, samples in sorted(times.items()):
                text += [_sample_line(sample, at) for sample in samples]
    return "\n".join([*text, "# EOF", ""])


def _sample_line(sample: Sample, at: float) -> str:
    """A line with a timestamp; the label ``job`` comes first."""
    names = sorted(sample.labels, key=lambda name: (name != "job", name))
    labels = ",".join(f'{name}="{escape_label(sample.labels[name])}"' for name in names)
    return f"{sample.name}{{{labels}}} {floatToGoString(sample.value)} {at:.3f}"  # type: ignore[no-untyped-call]


def scrapes_of(text: str) -> list[Scrape]:
    """The scrapes of :func:`open_metrics`.

    The lines are regrouped without parsing them: prometheus_client's parser does not allow a histogram to have several
    timestamps, and takes the buckets of the second one for duplicates.

    Raises:
        ValueError: when the text has another format.
    """
    pages: dict[tuple[float, str], list[str]] = {}
    described: dict[tuple[float, str], str] = {}  # the last TYPE line of each page
    kind = ""
    for line in text.splitlines():
        if line.startswith("#"):
            kind = line
            continue
        rest, _, at = line.rpartition(" ")
        job = _JOB.search(rest)
        if job is None:
            raise ValueError(f"no label job: {line[:100]}")
        key = float(at), job[1]
        page = pages.setdefault(key, [])
        if described.get(key) != kind:
            described[key] = kind
            page.append(kind)
        page.append(rest[: job.start()] + rest[job.end() :])
    return [Scrape(at, service, "\n".join([*page, "# EOF", ""])) for (at, service), page in sorted(pages.items())]
