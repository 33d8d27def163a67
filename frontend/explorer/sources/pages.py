"""Figures from the services' own ``/metrics`` pages."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession, ClientTimeout
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from frontend.explorer.sources.figures import (
    ENOUGH,
    LATENCY_LIMIT,
    OWN_ROLLS,
    PERCENTILES,
    STATIC,
    Buckets,
    Figures,
    faces_of,
    objectives,
    quantile,
)

INTERVAL = 2.0  # seconds between two samples of the pages
SAMPLES = 150  # samples that are kept: five minutes
WINDOW = 5  # samples that a rate covers
LATENCY_WINDOW = 30  # samples that a latency covers
UNWATCHED = 10.0  # seconds after the last use at which sampling ends
PAGE_TIMEOUT = ClientTimeout(total=1.5)
FRONTEND = "frontend"
NEEDED = (
    "http_requests_total", "http_request_duration_seconds_bucket", "http_request_duration_seconds_sum",
    "streamlit_requests_total", "streamlit_request_duration_seconds_bucket", "streamlit_request_duration_seconds_sum",
    "roll_requests_total", "dice_roll_value_bucket", "dice_rolls_total", "async_rolls_in_progress",
    "database_connection_pool_size", "database_connection_pool_available",
)  # fmt: skip


@dataclass
class _Service:
    """Totals since the start of a service."""

    requests: float = 0.0
    errors: float = 0.0
    seconds: float = 0.0  # of all requests that were timed
    buckets: Buckets = field(default_factory=lambda: defaultdict(float))

    @property
    def timed(self) -> float:
        return self.buckets.get(math.inf, 0.0)


@dataclass
class _Sample:
    time: float
    services: dict[str, _Service] = field(default_factory=dict)
    faces: dict[str, Buckets] = field(default_factory=lambda: defaultdict(dict))
    rolls: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    outcomes: dict[str, float] = field(default_factory=dict)  # of rolls, at the service that users call
    in_progress: float = math.nan
    pool_size: float = math.nan
    pool_available: float = math.nan


class Pages:
    """Samples the services' ``/metrics`` pages while a page shows them: one sampler for all browser sessions.

    Requests to these pages are neither counted nor traced, so sampling does not change the figures.
    """

    name = "/metrics"

    def __init__(self, session: Callable[[], ClientSession], services: Mapping[str, URL]) -> None:
        self._session = session
        self._services = services
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._looked = 0.0
        self._task: asyncio.Task[None] | None = None

    async def figures(self, since: int, until: int) -> Figures:
        self._looked = time.monotonic()
        if self._task is None or self._task.done():
            self._samples.clear()  # rates over a pause in sampling would be misleading
            self._task = asyncio.create_task(self._run())
            await self._sample()
        samples = [
            sample
            for sample in self._samples
            if sample.time * 1e9 >= since and (not until or sample.time * 1e9 <= until)
        ]
        return _figures(samples)

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
            _take(name, labels, value, service, totals, sample)


def _take(name: str, labels: Mapping[str, str], value: float, service: str, totals: _Service, sample: _Sample) -> None:
    handler = labels.get("handler")
    if handler == STATIC or (service == FRONTEND and handler in OWN_ROLLS):
        return
    if name in ("http_requests_total", "streamlit_requests_total"):
        totals.requests += value
        totals.errors += value if labels.get("status", labels.get("status_code", "")).startswith("5") else 0.0
    # The frontend's latency is that of rolls: its other responses are the page.
    elif name == ("streamlit_" if service == FRONTEND else "http_") + "request_duration_seconds_bucket":
        totals.buckets[float(labels["le"])] += value
    elif name == ("streamlit_" if service == FRONTEND else "http_") + "request_duration_seconds_sum":
        totals.seconds += value
    elif name == "roll_requests_total" and service == FRONTEND:
        sample.outcomes[labels["outcome"]] = value
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
    figures = Figures(
        times=[sample.time for sample in samples],
        rates_over=f"{WINDOW * INTERVAL:g} s",
        latency_over=f"{LATENCY_WINDOW * INTERVAL:g} s",
        objectives_over="since the frontend started",
        every=INTERVAL,
    )
    figures.in_progress = [sample.in_progress for sample in samples]
    figures.pool_size = [sample.pool_size for sample in samples]
    figures.pool_used = [sample.pool_size - sample.pool_available for sample in samples]
    names = sorted({name for sample in samples for name in sample.services})
    figures.latency = {percentile: {name: [] for name in names} for percentile in PERCENTILES}
    for name in names:
        rates, errors, means = [], [], []
        for place in range(len(samples)):
            old, new, seconds = _between(samples, place, WINDOW, name)
            rates.append((new.requests - old.requests) / seconds)
            errors.append((new.errors - old.errors) / seconds)
            old, new, _ = _between(samples, place, LATENCY_WINDOW, name)
            timed = new.timed - old.timed
            means.append((new.seconds - old.seconds) / timed if timed else math.nan)
            grown = {bound: count - old.buckets.get(bound, 0.0) for bound, count in new.buckets.items()}
            for percentile in PERCENTILES:
                figures.latency[percentile][name].append(quantile(percentile, grown) if timed >= ENOUGH else math.nan)
        figures.rate[name], figures.errors[name], figures.mean[name] = rates, errors, means
    if samples:
        latest = samples[-1]
        figures.faces = {die: faces_of(buckets) for die, buckets in latest.faces.items()}
        figures.rolls = {
            die: (results.get("success", 0.0), results.get("error", 0.0)) for die, results in latest.rolls.items()
        }
        frontend = latest.services.get(FRONTEND)
        if frontend:
            figures.objectives = objectives(latest.outcomes, frontend.timed, frontend.buckets.get(LATENCY_LIMIT, 0.0))
    return figures


def _between(samples: Sequence[_Sample], place: int, window: int, name: str) -> tuple[_Service, _Service, float]:
    """A service's totals some samples ago and now, and the seconds between; NaN if these are unknown."""
    before, now = samples[max(0, place - window)], samples[place]
    old, new = before.services.get(name), now.services.get(name)
    # Nothing to compare with, or the service has restarted and counts from zero.
    if old is None or new is None or before is now or new.requests < old.requests:
        return _Service(), _Service(), math.nan
    return old, new, now.time - before.time
