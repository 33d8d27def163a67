"""Load on a lab: when requests start, how they are asked, and what became of them.

In the open model requests start when they are due, whether earlier ones have been answered or not, and their
latency counts from when they were due. In the closed model each user waits for an answer before asking again,
so a stall holds back the very requests that would have met it ("coordinated omission"); there the correction of
HdrHistogram is applied afterwards, with the interval that the users would have kept.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
import resource
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from otel import traces

# More than this under way means that the lab is lost; what is due then is not sent, and that is said.
MAX_UNDER_WAY = 5_000
SLOWEST = 5
FAILED = 1_000
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
LONGEST = 3600.0  # seconds that a histogram can hold
# A ramp and a day begin with this share of the full load.
LEAST_SHARE = 0.1

# What share of the full load is due at a time, both from 0 to 1.
PROFILES: Mapping[str, Callable[[float], float]] = {
    "steady": lambda at: 1.0,
    "ramp": lambda at: max(LEAST_SHARE, at),
    "spike": lambda at: 1.0 if 0.4 <= at < 0.6 else 0.2,
    "day": lambda at: LEAST_SHARE + (1 - LEAST_SHARE) * math.sin(math.pi * at) ** 2,  # from midnight to midnight
}


def arrivals(rate: float, duration: float, profile: Callable[[float], float]) -> Iterator[float]:
    """When requests are due, in seconds from the start; ``rate`` a second at full load."""
    at = 0.0
    while duration - at > 1e-6:  # what additions of fractions are off by
        yield at
        at += 1 / (rate * profile(at / duration))


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        status: the HTTP status, or ``timeout`` or ``connection_error``.
        document: the JSON object that was answered, else empty.
        seconds: from when it was due to the end of the answer.
        started: when it was due, on the monotonic clock.
    """

    route: str
    status: str
    document: Mapping[str, Any]
    trace_id: str
    seconds: float
    started: float
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return not self.status.isdigit() or int(self.status) >= 400


class Client:
    """Asks over HTTP as many at once as there are; each request the root of a trace where ``traced``."""

    def __init__(self, timeout: float, traced: bool = True) -> None:
        self._timeout = timeout
        self._traced = traced
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_UNDER_WAY + 1000
        if soft not in (resource.RLIM_INFINITY,) and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == -1 else min(wanted, hard), hard))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # users carry their own
        )
        if self._traced:
            traces.instrument_session(self._session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def ask(
        self,
        url: str,
        route: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        due: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, whatever becomes of it.

        Args:
            due: when it was due, on the monotonic clock; now unless told.
            attributes: of the span around it.
        """
        started = time.monotonic() if due is None else due
        status, document, trace_id = "connection_error", {}, ""
        answered: Mapping[str, str] = {}
        with traces.span(f"user {method} {route}", attributes) if self._traced else nullcontext():
            trace_id, _ = traces.current_ids()
            try:
                async with self.session.request(
                    method, url + route, params=query, data=form, headers=headers, allow_redirects=False
                ) as response:
                    body = await response.read()
                    status, answered = str(response.status), response.headers
                    trace_id = answered.get("X-Trace-Id", trace_id)
                    document = _document(body)
                    if response.status >= 500:
                        traces.record_failure(RuntimeError(f"answered with {status}"))
            except asyncio.TimeoutError as error:
                status = "timeout"
                traces.record_failure(error)
            except (aiohttp.ClientError, OSError) as error:
                traces.record_failure(error)
        return Answer(route, status, document, trace_id, time.monotonic() - started, started, answered)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


class Record:
    """What became of all requests of a run."""

    def __init__(self) -> None:
        self.histogram = HdrHistogram(1, int(LONGEST * 1e6), 3)  # microseconds
        self.routes: dict[str, Counter[str]] = {}
        self.failed: deque[Answer] = deque(maxlen=FAILED)  # the last of them
        self.requests = 0
        self.failures = 0  # all of them
        self.not_sent = 0
        self._slowest: list[tuple[float, int, Answer]] = []
        self._order = itertools.count()

    def add(self, answer: Answer, timed: bool = True) -> None:
        """Count an answer; its latency too, unless it is no part of what is ``timed``."""
        self.requests += 1
        self.routes.setdefault(answer.route, Counter())[answer.status] += 1
        if answer.failed:
            self.failures += 1
            self.failed.append(answer)
        if not timed:
            return
        self.histogram.record_value(min(max(1, round(answer.seconds * 1e6)), int(LONGEST * 1e6)))
        entry = (answer.seconds, next(self._order), answer)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif answer.seconds > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, entry)

    @property
    def statuses(self) -> Counter[str]:
        return sum(self.routes.values(), Counter())

    @property
    def slowest(self) -> list[Answer]:
        return [answer for *_, answer in sorted(self._slowest, reverse=True)]

    def corrected(self, interval: float) -> HdrHistogram:
        """The latencies with those of the requests that a stall held back, one due every ``interval`` seconds."""
        corrected = HdrHistogram(1, int(LONGEST * 1e6), 3)
        step = max(1, round(interval * 1e6))
        for item in self.histogram.get_recorded_iterator():
            # As HdrHistogram defines it. The library's own method goes on below the interval, and so lowers
            # percentiles by adding requests that would have been answered sooner than any was.
            for value in range(item.value_iterated_to, step - 1, -step):
                corrected.record_value(value, item.count_added_in_this_iter_step)
            if item.value_iterated_to < step:
                corrected.record_value(item.value_iterated_to, item.count_added_in_this_iter_step)
        return corrected


def percentiles(histogram: HdrHistogram) -> dict[str, float]:
    """Milliseconds by name: ``p50`` … ``p99.9``, ``mean``, ``max``; empty where there is nothing."""
    if not histogram.get_total_count():
        return {}
    found = {f"p{share:g}": histogram.get_value_at_percentile(share) / 1000 for share in PERCENTILES}
    found |= {"mean": histogram.get_mean_value() / 1000, "max": histogram.get_max_value() / 1000}
    return {name: round(value, 3) for name, value in found.items()}


def told(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Answers for a JSON summary."""
    return [
        {
            "trace_id": answer.trace_id,
            "route": answer.route,
            "status": answer.status,
            "ms": round(answer.seconds * 1000, 3),
        }
        for answer in answers
    ]


async def open_loop(
    due: Iterable[float], ask: Callable[[int, float], Awaitable[None]], stop: asyncio.Event, record: Record
) -> float:
    """Start one request after the other when it is due, and wait for the last answer.

    Args:
        due: seconds from now.
        ask: is given the request's number, from 0, and when it was due on the monotonic clock.
        stop: no more are started once it is set.

    Returns:
        The longest that a request started late, in seconds: what this process could not keep up with.
    """
    under_way: set[asyncio.Task[None]] = set()
    beginning = time.monotonic()
    late = 0.0
    for number, at in enumerate(due):
        wait = beginning + at - time.monotonic()
        if wait > 0:
            await sleep(wait, stop)
        else:
            late = max(late, -wait)
            await asyncio.sleep(0)  # the answers want their turn too
        if stop.is_set():
            break
        if len(under_way) >= MAX_UNDER_WAY:
            record.not_sent += 1
            continue
        task = asyncio.ensure_future(ask(number, beginning + at))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        for outcome in await asyncio.gather(*under_way, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
    return late


async def sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or until told to stop."""
    if seconds < 0.1:  # too short to be worth a timer of its own
        await asyncio.sleep(seconds)
        return
    with suppress(asyncio.TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


@asynccontextmanager
async def stoppable() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; the second signal cancels what runs."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def shown(what: str, said: Callable[[], str], share: Callable[[], float | None]) -> AsyncIterator[None]:
    """A progress bar on stderr while the block runs, where that is a terminal.

    Args:
        said: a few words on how it stands.
        share: how much is done, from 0 to 1, or ``None`` where nobody can know.
    """
    if not sys.stderr.isatty():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[said]}"), console=Console(stderr=True), transient=True
    ) as progress:
        bar = progress.add_task(what, total=None, said="")

        async def update() -> None:
            while True:
                done = share()
                progress.update(bar, said=said(), total=None if done is None else 1, completed=done or 0)
                await asyncio.sleep(0.2)

        task = asyncio.ensure_future(update())
        try:
            yield
        finally:
            task.cancel()
