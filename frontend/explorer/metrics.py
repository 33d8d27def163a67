"""Figures of the lab: from Prometheus where it runs, else from the services' own ``/metrics`` pages."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import ClientError, ClientSession, ClientTimeout
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from frontend.explorer.engines import Engine
from frontend.explorer.model import SourceError

PERCENTILES = (0.5, 0.95, 0.99)
INTERVAL = 2.0  # seconds between two samples of the pages
SAMPLES = 150  # that are kept: five minutes
WINDOW = 5  # samples that a rate is taken over
UNWATCHED = 10.0  # seconds after the last look at which sampling ends
PAGE_TIMEOUT = ClientTimeout(total=1.5)
# Of Prometheus: how far back, in which steps, and over what its rates are taken, in seconds.
RANGE, STEP, RATE = 600, 5, 30
NEEDED = (
    "http_requests_total", "http_request_duration_seconds_bucket", "dice_roll_value_bucket", "dice_rolls_total",
    "async_rolls_in_progress", "database_connection_pool_size", "database_connection_pool_available",
)  # fmt: skip
STATIC = "/static/{path}"  # files of the page, which would bury everything else


@dataclass
class Figures:
    """What the metrics view shows. Rates are per second, latencies seconds; NaN where there is nothing to tell.

    Attributes:
        times: seconds since 1970, rising; all series are as long.
        latency: by percentile, then by service.
        faces: how often each face of a die came up so far.
        rolls: how many rolls of a die came out, and how many failed.
    """

    times: list[float] = field(default_factory=list)
    rate: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    latency: dict[float, dict[str, list[float]]] = field(default_factory=dict)
    in_progress: list[float] = field(default_factory=list)
    pool_size: list[float] = field(default_factory=list)
    pool_used: list[float] = field(default_factory=list)
    faces: dict[str, dict[int, float]] = field(default_factory=dict)
    rolls: dict[str, tuple[float, float]] = field(default_factory=dict)


class MetricSource(Protocol):
    name: str

    async def figures(self) -> Figures:
        """The figures of the last minutes.

        Raises:
            SourceError: when they cannot be had.
        """


# --- the pages ---

Buckets = dict[float, float]  # counts of a histogram by upper bound, each with all below it


@dataclass
class _Service:
    requests: float = 0.0
    errors: float = 0.0
    buckets: Buckets = field(default_factory=lambda: defaultdict(float))


@dataclass
class _Sample:
    time: float
    services: dict[str, _Service] = field(default_factory=dict)
    faces: dict[str, Buckets] = field(default_factory=lambda: defaultdict(dict))
    rolls: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    in_progress: float = math.nan
    pool_size: float = math.nan
    pool_available: float = math.nan


class Pages:
    """Samples the services' ``/metrics`` pages while somebody looks: one sampler for all browser sessions.

    The pages are neither counted nor traced, so looking changes nothing of what is seen.
    """

    name = "/metrics"

    def __init__(self, session: Callable[[], ClientSession], services: Mapping[str, URL]) -> None:
        self._session = session
        self._services = services
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._looked = 0.0
        self._task: asyncio.Task[None] | None = None

    async def figures(self) -> Figures:
        self._looked = time.monotonic()
        if self._task is None or self._task.done():
            self._samples.clear()  # rates over a time when nobody looked would say little
            await self._sample()
            self._task = asyncio.create_task(self._run())
        return _figures(list(self._samples))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while time.monotonic() - self._looked < UNWATCHED:
            await asyncio.sleep(INTERVAL)
            await self._sample()

    async def _sample(self) -> None:
        sample = _Sample(time.time())
        pages = await asyncio.gather(*(self._page(url) for url in self._services.values()))
        for service, page in zip(self._services, pages, strict=True):
            if page:
                _read(page, service, sample)
        self._samples.append(sample)

    async def _page(self, url: URL) -> str:
        try:
            with suppress_http_instrumentation():
                async with self._session().get(
                    url / "metrics", headers={"Accept-Encoding": "identity"}, timeout=PAGE_TIMEOUT
                ) as response:
                    return await response.text() if response.status == 200 else ""
        except (ClientError, asyncio.TimeoutError, UnicodeDecodeError):
            return ""  # a service that is down leaves a gap in its line


def _read(page: str, service: str, sample: _Sample) -> None:
    # Only what is needed is parsed: the whole page takes a hundred times as long.
    lines = "\n".join(line for line in page.split("\n") if line.startswith(NEEDED))
    totals = sample.services[service] = _Service()
    for family in text_string_to_metric_families(lines + "\n"):
        for name, labels, value, *_ in family.samples:
            if labels.get("handler") == STATIC:
                continue
            if name == "http_requests_total":
                totals.requests += value
                totals.errors += value if labels["status"].startswith("5") else 0.0
            elif name == "http_request_duration_seconds_bucket":
                totals.buckets[float(labels["le"])] += value
            elif name == "dice_roll_value_bucket":
                sample.faces[labels["die_type"]][float(labels["le"])] = value
            elif name == "dice_rolls_total":
                sample.rolls[labels["die_type"]][labels["result"]] = value
            elif name == "async_rolls_in_progress":
                sample.in_progress = value
            elif name == "database_connection_pool_size":
                sample.pool_size = value
            elif name == "database_connection_pool_available":
                sample.pool_available = value


def _figures(samples: Sequence[_Sample]) -> Figures:
    figures = Figures(times=[sample.time for sample in samples])
    figures.in_progress = [sample.in_progress for sample in samples]
    figures.pool_size = [sample.pool_size for sample in samples]
    figures.pool_used = [sample.pool_size - sample.pool_available for sample in samples]
    names = sorted({name for sample in samples for name in sample.services})
    figures.latency = {percentile: {name: [] for name in names} for percentile in PERCENTILES}
    for name in names:
        rates, errors = figures.rate.setdefault(name, []), figures.errors.setdefault(name, [])
        for place, sample in enumerate(samples):
            before = samples[max(0, place - WINDOW)]
            old, new = before.services.get(name), sample.services.get(name)
            seconds = sample.time - before.time
            # Nothing to compare with; or the service has started again and counts from zero.
            if old is None or new is None or not seconds or new.requests < old.requests:
                old = new = _Service()
                seconds = math.nan
            rates.append((new.requests - old.requests) / seconds)
            errors.append((new.errors - old.errors) / seconds)
            grown = {bound: count - old.buckets.get(bound, 0.0) for bound, count in new.buckets.items()}
            for percentile in PERCENTILES:
                figures.latency[percentile][name].append(quantile(percentile, grown))
    if samples:
        figures.faces = {die: faces_of(buckets) for die, buckets in samples[-1].faces.items()}
        figures.rolls = {
            die: (results.get("success", 0.0), results.get("error", 0.0)) for die, results in samples[-1].rolls.items()
        }
    return figures


def quantile(percentile: float, buckets: Buckets) -> float:
    """What Prometheus's ``histogram_quantile`` says of these buckets; NaN where they are empty."""
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]
    if not counts or counts[-1] <= 0:
        return math.nan
    rank = percentile * counts[-1]
    place = bisect_left(counts, rank)
    if math.isinf(bounds[place]):
        return bounds[place - 1] if place else math.nan
    low, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    within = counts[place] - below
    return low + (bounds[place] - low) * ((rank - below) / within if within else 0.0)


def faces_of(buckets: Buckets) -> dict[int, float]:
    """How often each face came up, of a histogram with a bucket for each."""
    faces: dict[int, float] = {}
    below = 0.0
    for bound in sorted(buckets):
        if buckets[bound] > below and not math.isinf(bound):
            faces[int(bound)] = buckets[bound] - below
        below = max(below, buckets[bound])
    return faces


# --- Prometheus ---

_REQUESTS = f'http_requests_total{{handler!="{STATIC}"}}'
_ERRORS = f'http_requests_total{{handler!="{STATIC}", status=~"5.."}}'
_DURATIONS = f'http_request_duration_seconds_bucket{{handler!="{STATIC}"}}'
RATE_QUERY = f"sum by (job) (rate({_REQUESTS}[{RATE}s]))"
ERROR_QUERY = f"sum by (job) (rate({_ERRORS}[{RATE}s]))"


def latency_query(percentile: float) -> str:
    return f"histogram_quantile({percentile}, sum by (job, le) (rate({_DURATIONS}[{RATE}s])))"


class Prometheus(Engine):
    """Figures from Prometheus."""

    name = "Prometheus"

    async def figures(self) -> Figures:
        end = int(time.time() / STEP) * STEP
        queries = [RATE_QUERY, ERROR_QUERY, *map(latency_query, PERCENTILES)]
        queries += [
            "sum(async_rolls_in_progress)",
            "sum(database_connection_pool_size)",
            "sum(database_connection_pool_size) - sum(database_connection_pool_available)",
        ]
        ranges = await asyncio.gather(*(self._range(query, end) for query in queries))
        faces = await self._instant("sum by (die_type, le) (dice_roll_value_bucket)")
        rolls = await self._instant("sum by (die_type, result) (dice_rolls_total)")
        rate, errors, *latencies = (
            {metric.get("job", ""): values for metric, values in found} for found in ranges[: 2 + len(PERCENTILES)]
        )
        in_progress, pool_size, pool_used = (
            found[0][1] if found else [math.nan] * (RANGE // STEP + 1) for found in ranges[-3:]
        )
        buckets: dict[str, Buckets] = defaultdict(dict)
        for metric, value in faces:
            buckets[metric["die_type"]][float(metric["le"])] = value
        outcomes: dict[str, dict[str, float]] = defaultdict(dict)
        for metric, value in rolls:
            outcomes[metric["die_type"]][metric["result"]] = value
        return Figures(
            times=[float(end - RANGE + STEP * step) for step in range(RANGE // STEP + 1)],
            rate=rate,
            errors={job: errors.get(job) or [0.0 if value >= 0 else value for value in rate[job]] for job in rate},
            latency=dict(zip(PERCENTILES, latencies, strict=True)),
            in_progress=in_progress,
            pool_size=pool_size,
            pool_used=pool_used,
            faces={die: faces_of(found) for die, found in buckets.items()},
            rolls={die: (found.get("success", 0.0), found.get("error", 0.0)) for die, found in outcomes.items()},
        )

    async def _range(self, query: str, end: int) -> list[tuple[dict[str, str], list[float]]]:
        answer = await self._result(
            "query_range", {"query": query, "start": str(end - RANGE), "end": str(end), "step": str(STEP)}
        )
        return [(row["metric"], _on_grid(row["values"], end)) for row in answer]

    async def _instant(self, query: str) -> list[tuple[dict[str, str], float]]:
        return [(row["metric"], float(row["value"][1])) for row in await self._result("query", {"query": query})]

    async def _result(self, path: str, query: Mapping[str, str]) -> list[Any]:
        answer = await self.get(f"api/v1/{path}", query)
        try:
            result: list[Any] = answer["data"]["result"]
        except (KeyError, TypeError) as error:
            raise SourceError("Prometheus gave no sensible answer.") from error
        return result


def _on_grid(values: Iterable[Sequence[Any]], end: int) -> list[float]:
    """A series with NaN where Prometheus has nothing."""
    known = {int(at): float(value) for at, value in values}
    return [known.get(end - RANGE + STEP * step, math.nan) for step in range(RANGE // STEP + 1)]
