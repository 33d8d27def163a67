"""Sends requests to the lab, and collects the spans, log lines and metrics that they cause.

Spans and lines are selected by the trace ids of these requests, so other users of the lab do not change the result. The
requests carry no trace context, and this process writes no spans and no lines of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lab import LabError
from lab.client import Lab
from lab.cost.measure import LineRecord, Observed, Page
from lab.cost.otlp import Size, SpanRecord, records
from lab.load.generator import Client
from lab.load.users import ASYNC_PROBABILITY, BUILTIN, MAX_ASYNC_ROLLS, Mix, dice_of
from lab.paths import COMPOSE
from lab.rotated import open_files, whole_lines
from lab.schema.registry import Registry
from lab.signals import OPENMETRICS, parse_line, parse_samples
from lab.waiting import gather, within

USERS = 8  # that roll at the same time
TIMEOUT = 30.0  # seconds for one request
ARRIVAL_TIMEOUT = 60.0  # seconds for the spans and lines to arrive
# Seconds between two polls: of files, of Tempo.
POLL_FILES, POLL_ENGINES = 1.0, 2.0
# Seconds without anything new after which a missing span is given up, such as one of a trace that is not sampled:
# longer than services wait for a batch of spans, and longer than the Collector waits for the end of a trace.
QUIET_FILES, QUIET_ENGINES, QUIET_SAMPLING = 5.0, 15.0, 20.0
PARALLEL = 8  # requests to Tempo
PAIR = 8  # bytes of a pair of structured metadata in a chunk of Loki: a reference to its name and one to its value
SPANS_RECEIVED = "tempo_distributor_spans_received_total"


@dataclass
class Run:
    """The requests that were sent.

    Attributes:
        rolls: how many were requested; each roll of a batch counts.
        failed: how many requests failed.
        traces: the trace ids of the responses.
    """

    rolls: int = 0
    requests: int = 0
    failed: int = 0
    traces: set[str] = field(default_factory=set)


class Files:
    """The growing files of a directory; :meth:`new` reads what was written since this object was created."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with ExitStack() as stack:
            states = [os.fstat(file.fileno()) for _, file in open_files(directory, stack)]
        self._start = {state.st_ino: state.st_size for state in states}

    def new(self) -> Iterator[tuple[str, bytes]]:
        """The complete lines since then, each with the name of the service that its file belongs to."""
        with ExitStack() as stack:
            for name, file in open_files(self._directory, stack):
                file.seek(self._start.get(os.fstat(file.fileno()).st_ino, 0))
                for line in whole_lines(file):
                    yield name.partition(".")[0], line

    def size(self) -> int:
        return sum(len(line) for _, line in self.new())


async def roll(lab: Lab, requests: int, seed: int) -> Run:
    """Send requests as ``dicelab traffic`` does: every die, some of them in batches, signed in where users can.

    Raises:
        LabError: when the lab does not respond, or no request succeeds.
    """
    run = Run()
    capabilities = await lab.fetch_capabilities()
    dice = await dice_of(lab, capabilities) or BUILTIN
    mix = Mix(dict.fromkeys(dice, 1.0), ASYNC_PROBABILITY if capabilities.max_times else 0.0, MAX_ASYNC_ROLLS)
    chance = random.Random(seed)
    pending = [mix.draw(chance) for _ in range(requests)]

    async with Client(TIMEOUT, traced=False) as client:

        async def ask(route: str, query: Mapping[str, str] | None = None, **how: Any) -> Mapping[str, str]:
            response = await client.ask(lab.front, route, query, **how)
            run.requests += 1
            run.failed += response.failed
            if response.trace_id:
                run.traces.add(response.trace_id)
            return response.headers

        async def user(number: int) -> None:
            headers = {}
            if capabilities.sign_in:
                response_headers = await ask("/sign-in", method="POST", form={"name": f"user {number + 1}"})
                if cookie := response_headers.get("Set-Cookie", "").partition(";")[0]:
                    headers = {"Cookie": cookie}
            while pending:
                die, times = pending.pop()
                query = {"die": die} if times is None else {"die": die, "times": str(times)}
                run.rolls += times or 1
                await ask("/roll" if times is None else "/roll-async", query, headers=headers)
            if headers:
                await ask("/sign-out", method="POST", headers=headers)

        await asyncio.gather(*map(user, range(min(USERS, requests))))
    if run.failed == run.requests:
        raise LabError(f"none of {run.requests} requests to {lab.front} succeeded")
    return run


class Collector:
    """Collects the telemetry of some requests: create it, send the requests, then call :meth:`observe`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._logs = Files(lab.directory.logs)
        self._traces = Files(lab.directory.traces)
        self._registry = Registry.read()

    async def observe(self, run: Run) -> Observed:
        """Wait until the telemetry of the requests has arrived, and read it."""
        spans = await self._arrived(run.traces)
        pages = {service: await page(self._lab, service) for service in self._lab.services}
        return Observed(
            run.rolls,
            frozenset(run.traces),
            tuple(spans),
            tuple(self._lines(run.traces)),
            pages,
            scrape_interval(),
        )

    def all_lines(self) -> list[tuple[str, bytes]]:
        """Every line since the start, including those of other requests, with the service of its file."""
        return list(self._logs.new())

    async def _arrived(self, traces: set[str]) -> list[SpanRecord]:
        """Wait until all telemetry of some traces has arrived; returns their spans.

        A service writes its last line about a request before the request's span ends, and sends spans in the order in
        which they end. So a trace is complete once every span that its lines name has arrived.
        """
        with_tempo = "tempo" in self._lab.engines
        poll = POLL_ENGINES if with_tempo else POLL_FILES
        quiet = QUIET_SAMPLING if self._lab.sampling else QUIET_ENGINES if with_tempo else QUIET_FILES
        clock = asyncio.get_running_loop().time
        spans: list[SpanRecord] = []
        incomplete = traces
        arrived, since = (0, 0), clock()
        async for _ in within(ARRIVAL_TIMEOUT, poll=poll):
            spans = [record for record in spans if record.span.trace_id not in incomplete]
            spans += await self._from_tempo(incomplete) if with_tempo else self._from_files(incomplete)
            lines = list(self._lines(traces))
            incomplete = _incomplete(traces, lines, spans)
            now = len(lines), len(spans)
            if now != arrived:
                arrived, since = now, clock()
            elif not incomplete or clock() - since >= quiet:
                break
        return spans

    def _from_files(self, traces: set[str]) -> Iterator[SpanRecord]:
        for _, line in self._traces.new():
            yield from (record for record in records(orjson.loads(line)) if record.span.trace_id in traces)

    async def _from_tempo(self, traces: set[str]) -> list[SpanRecord]:
        exports = await gather(self._lab.fetch_export, sorted(traces), PARALLEL)
        return [record for export in exports for record in records(export)]

    def _lines(self, traces: set[str]) -> Iterator[LineRecord]:
        for service, text in self._logs.new():
            try:
                line = parse_line(text.decode())
            except ValueError:
                continue
            if line.trace_id in traces:
                event = self._registry.event(line.service, line.fields)
                yield LineRecord(line.service or service, text, line, event.name if event else line.message)


def _incomplete(traces: Iterable[str], lines: Iterable[LineRecord], spans: Iterable[SpanRecord]) -> set[str]:
    """The traces that have no line yet, or a line that names a span which has not arrived."""
    arrived = {(record.span.trace_id, record.span.span_id) for record in spans}
    named = {(record.line.trace_id, str(record.line.fields.get("span_id") or "")) for record in lines}
    return set(traces) - {trace_id for trace_id, _ in named} | {trace_id for trace_id, _ in named - arrived}


async def page(lab: Lab, service: str) -> Page:
    """A service's ``/metrics`` page in the format that Prometheus requests."""
    text = (await lab.fetch(f"{lab.url(service)}/metrics", Accept=OPENMETRICS)).text
    body = text.encode()
    return Page(Size(len(body), len(gzip.compress(body))), tuple(parse_samples(text)))


def scrape_interval() -> float:
    """Seconds between two scrapes, from the shipped configuration of Prometheus."""
    configuration = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    return float(configuration["global"]["scrape_interval"].removesuffix("s"))


async def counters(session: aiohttp.ClientSession, url: str, names: Collection[str]) -> defaultdict[str, float]:
    """The samples on an engine's ``/metrics`` page, summed by name; empty where the engine does not respond.

    Args:
        names: the names of the samples. The rest of the page is not parsed, because it is long.
    """
    found: defaultdict[str, float] = defaultdict(float)
    try:
        async with session.get(url) as response:
            text = await response.text()
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return found
    lines = [line for line in text.splitlines(keepends=True) if line.startswith(tuple(names))]
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            if sample.name in names:
                found[sample.name] += sample.value
    return found


class LokiBytes(NamedTuple):
    """Lines as Loki counts them.

    Attributes:
        received: bytes at its distributor: each line's text, and the names and values of its structured metadata.
        in_chunks: bytes in its chunks: texts, 8 bytes for each pair of structured metadata, and each distinct value
            once for each stream. A chunk also holds each name once, which is not counted here.
    """

    lines: int
    received: int
    in_chunks: int


def loki_bytes(lines: Iterable[tuple[str, bytes]]) -> LokiBytes:
    """What Loki counts for the services' lines, whose ids ``alloy/pipeline.alloy`` sends as structured metadata."""
    count = received = in_chunks = 0
    symbols: set[tuple[str, ...]] = set()
    for service, text in lines:
        count += 1
        received += len(text) - 1
        in_chunks += len(text) - 1
        try:
            line = parse_line(text.decode())
        except ValueError:
            continue
        stream = service, line.level, str(line.fields.get("usage") is True)
        for name in ("trace_id", "span_id"):
            if value := str(line.fields.get(name) or ""):
                received += len(name) + len(value)
                in_chunks += PAIR + (len(value) if (*stream, value) not in symbols else 0)
                symbols.add((*stream, value))
    return LokiBytes(count, received, in_chunks)
