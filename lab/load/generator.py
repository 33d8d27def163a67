"""Load on a lab: when requests start, how they are sent, and a record of the responses.

In the open model requests start when they are due, whether earlier ones have completed or not, and latency is
measured from the time they were due. In the closed model each user waits for a response before the next request. So
during a stall the requests that would have shown it are not sent ("coordinated omission"). HdrHistogram's correction is
applied afterwards, with the interval at which those users would have sent requests.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import resource
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from lab.load.latency import Latencies
from lab.signals import json_object
from lab.waiting import sleep
from otel import traces

MAX_UNDER_WAY = 5_000  # requests in flight; beyond that requests are counted as not sent
KEPT_SLOWEST = 5  # the slowest responses that a record keeps
KEPT_FAILED = 1_000  # the latest failed responses that a record keeps
MIN_SHARE = 0.1  # the share of the full load at which the profiles ramp and day begin

# The share of the full load over time; both are from 0 to 1.
PROFILES: Mapping[str, Callable[[float], float]] = {
    "steady": lambda at: 1.0,
    "ramp": lambda at: max(MIN_SHARE, at),
    "spike": lambda at: 1.0 if 0.4 <= at < 0.6 else 0.2,
    "day": lambda at: MIN_SHARE + (1 - MIN_SHARE) * math.sin(math.pi * at) ** 2,  # from midnight to midnight
}


def arrivals(rate: float, duration: float, profile: Callable[[float], float]) -> Iterator[float]:
    """The times at which requests are due, in seconds from the start; ``rate`` is requests a second at full load."""
    at = 0.0
    while duration - at > 1e-6:  # tolerates the rounding errors of the additions
        yield at
        at += 1 / (rate * profile(at / duration))


@dataclass(frozen=True)
class Response:
    """The response to a request, or the reason why there was none.

    Attributes:
        status: the HTTP status, or ``timeout`` or ``connection_error``.
        document: the JSON object in the body; empty where there is none.
        seconds: from the time it was due to the end of the response.
        started: the time it was due, on the monotonic clock.
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
    """An HTTP client without a limit on connections; each request is the root of a trace if ``traced``.

    Args:
        timeout: the time limit of a request, in seconds.
    """

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
            cookie_jar=aiohttp.DummyCookieJar(),  # each user has a cookie of its own
        )
        if self._traced:
            self._session = traces.instrument_session(self._session)
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
    ) -> Response:
        """Send one request; failures are outcomes too, not exceptions.

        Args:
            due: the time the request was due, on the monotonic clock; now by default.
            attributes: the attributes of the span around the request.
        """
        started = time.monotonic() if due is None else due
        status, document, trace_id = "connection_error", {}, ""
        response_headers: Mapping[str, str] = {}
        with traces.span(f"user {method} {route}", attributes) if self._traced else nullcontext():
            trace_id, _ = traces.current_ids()
            try:
                async with self.session.request(
                    method, url + route, params=query, data=form, headers=headers, allow_redirects=False
                ) as response:
                    body = await response.read()
                    status, response_headers = str(response.status), response.headers
                    trace_id = response_headers.get("X-Trace-Id", trace_id)
                    document = json_object(body)
                    if response.status >= 500:
                        traces.record_failure(RuntimeError(f"answered with {status}"))
            except asyncio.TimeoutError as error:
                status = "timeout"
                traces.record_failure(error)
            except (aiohttp.ClientError, OSError) as error:
                traces.record_failure(error)
        return Response(route, status, document, trace_id, time.monotonic() - started, started, response_headers)


class Record:
    """The outcomes of all requests of a run."""

    def __init__(self) -> None:
        self.latencies = Latencies()
        self.routes: dict[str, Counter[str]] = {}
        self.failed: deque[Response] = deque(maxlen=KEPT_FAILED)  # the latest ones
        self.requests = 0
        self.failures = 0  # the number of all failed requests
        self.not_sent = 0
        self._slowest: list[tuple[float, int, Response]] = []
        self._order = itertools.count()

    def add(self, response: Response, timed: bool = True) -> None:
        """Count a response, and its latency if it is ``timed``."""
        self.requests += 1
        self.routes.setdefault(response.route, Counter())[response.status] += 1
        if response.failed:
            self.failures += 1
            self.failed.append(response)
        if not timed:
            return
        self.latencies.add(response.seconds)
        entry = (response.seconds, next(self._order), response)
        if len(self._slowest) < KEPT_SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif response.seconds > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, entry)

    @property
    def statuses(self) -> Counter[str]:
        return sum(self.routes.values(), Counter())

    @property
    def slowest(self) -> list[Response]:
        return [response for *_, response in sorted(self._slowest, reverse=True)]


def summarized(responses: Iterable[Response]) -> list[dict[str, Any]]:
    """Responses as they appear in a JSON summary."""
    return [
        {
            "trace_id": response.trace_id,
            "route": response.route,
            "status": response.status,
            "ms": round(response.seconds * 1000, 3),
        }
        for response in responses
    ]


async def open_loop(
    due: Iterable[float], ask: Callable[[int, float], Awaitable[None]], stop: asyncio.Event, record: Record
) -> float:
    """Start each request when it is due, and wait for the last response.

    Args:
        due: seconds from now.
        ask: sends a request, given its number from 0 and the time it was due on the monotonic clock.
        stop: no request starts once it is set.

    Returns:
        The longest delay of a start, in seconds. It grows when this process cannot keep up.
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
            await asyncio.sleep(0)  # let responses be processed
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
