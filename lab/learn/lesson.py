"""The lab as an exercise uses it: requests whose outcomes are recorded, temporary faults, raw spans and lines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError
from lab.chaos import observations
from lab.chaos.targets import RunDirTarget
from lab.client import Lab, Missing
from lab.signals import SPAN_KINDS, Line, Span, format_time, json_object, parse_time
from lab.waiting import gather, within

TIMEOUT = 20.0  # seconds for telemetry to arrive and services to be ready again
POLL = 0.1
SETTLE = 0.3  # seconds
AT_ONCE = 20  # requests in flight at most


@dataclass(frozen=True)
class Outcome:
    """The client's own record of one request; ``seconds`` is its latency, and ``status`` is 0 without a response."""

    die: str
    status: int
    document: Mapping[str, Any]
    trace_id: str
    seconds: float
    at: float = 0.0  # when it was sent, in seconds since 1970


class Lesson:
    """One attempt at an exercise.

    Args:
        lab: the running lab, entered; ``None`` where none runs.
        directory: the directory for files of the attempt.
        seed: determines everything that is random.
        outage: how long Loki is stopped in the exercise about an outage, in seconds.
    """

    def __init__(self, lab: Lab | None, directory: Path, seed: int, outage: float = 60.0) -> None:
        self._lab = lab
        self.directory = directory
        self.seed = seed
        self.chance = random.Random(seed)
        self.outage = outage
        self.began = time.time()
        self._callers = {""}  # the parents that a root span may have: span ids that requests carried, or none
        self.prefix = f"{self.chance.getrandbits(32):08x}"  # every trace id of this attempt begins with it

    @property
    def lab(self) -> Lab:
        """The running lab.

        Raises:
            LabError: when none runs.
        """
        if self._lab is None:
            raise LabError("no lab runs in this run dir; start it with dicelab up")
        return self._lab

    def facts(self, **more: Any) -> dict[str, Any]:
        """The facts that every question may use, and further ones."""
        lab = self.lab
        return {
            "since": format_time(self.began),
            "run_dir": str(lab.run_dir),
            "front": lab.front,
            **lab.services,
            **more,
        }

    # --- requests ---

    def trace_id(self) -> str:
        """A new trace id of this attempt."""
        return self.prefix + f"{self.chance.getrandbits(96):024x}"

    async def ask(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        url: str = "",
        trace_id: str = "",
        flags: str = "01",
        headers: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Send one GET request; a failure is an outcome too, not an exception.

        Args:
            url: the URL of a service; by default that of the service that users call.
            trace_id: sent in a ``traceparent`` header with these flags; without it, no header is sent.
        """
        sent = dict(headers or {})
        if trace_id:
            caller = f"{self.chance.getrandbits(64) | 1:016x}"
            self._callers.add(caller)
            sent["traceparent"] = f"00-{trace_id}-{caller}-{flags}"
        die = (query or {}).get("die", "")
        began, at = time.monotonic(), time.time()
        try:
            async with self.lab.session.get((url or self.lab.front) + path, params=query, headers=sent) as response:
                body = await response.read()
                seconds = time.monotonic() - began
                found = trace_id or response.headers.get("X-Trace-Id", "")
                return Outcome(die, response.status, json_object(body), found, seconds, at)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return Outcome(die, 0, {}, trace_id, time.monotonic() - began, at)

    async def roll(self, dice: Iterable[str], *, traced: bool = True, url: str = "") -> list[Outcome]:
        """Roll dice, up to :data:`AT_ONCE` at the same time; returns the outcomes in order.

        Args:
            traced: whether each request carries a trace id of this attempt, if the lab accepts one.
        """
        traced = traced and self.lab.stage > 1  # stage 1 takes no context from its callers

        async def one(die: str) -> Outcome:
            return await self.ask("/roll", {"die": die}, url=url, trace_id=self.trace_id() if traced else "")

        return await gather(one, dice, AT_ONCE)

    # --- faults ---

    @asynccontextmanager
    async def faults(self) -> AsyncIterator[RunDirTarget]:
        """Faults that are removed at the end of the block; the lab is ready again after it.

        Raises:
            LabError: when the lab does not accept faults, or is not ready again in time.
        """
        if any(len(service.get("workers", [])) > 1 for service in self.lab.state.get("services", [])):
            raise LabError("this exercise needs one process a service: start the lab without --workers")
        async with RunDirTarget(self.lab) as target:
            try:
                yield target
            finally:
                await target.end()
                await self.ready()

    async def ready(self) -> None:
        """Wait until every service is ready.

        Raises:
            LabError: when one is not ready in time.
        """
        if not await observations.ready(self.lab, TIMEOUT, POLL, times=2):
            raise LabError(f"a service of the lab is not ready after {TIMEOUT:g} s; dicelab status says which")

    # --- telemetry ---

    async def traces(self, trace_ids: Collection[str], services: Collection[str] = ()) -> dict[str, list[Span]]:
        """The spans of traces, once these are complete; the spans of each trace in the order of their start.

        A trace is complete when it has spans of these services (by default of all); its tree has one root, which has no
        parent or the one that the request carried; and each HTTP client span has a server span below it.

        Raises:
            LabError: when they are not complete in time.
        """
        wanted = set(services or self.lab.services)
        found: dict[str, list[Span]] = {}
        async for _ in within(TIMEOUT, SETTLE):
            for trace_id, spans in (await self.arrived(set(trace_ids) - set(found))).items():
                if complete(spans, wanted, self._callers):
                    found[trace_id] = sorted(spans, key=lambda span: (span.start, -span.end))
            if len(found) == len(set(trace_ids)):
                return found
        missing = min(set(trace_ids) - set(found))
        raise LabError(f"the spans of trace {missing} have not arrived after {TIMEOUT:g} s; ask again")

    async def arrived(self, trace_ids: Collection[str]) -> dict[str, list[Span]]:
        """The spans of these traces that have arrived, complete or not."""
        found: dict[str, list[Span]] = {}
        if "tempo" in self.lab.engines:
            for trace_id in trace_ids:
                try:
                    found[trace_id] = await self.lab.fetch_trace(trace_id)
                except (Missing, aiohttp.ClientError, asyncio.TimeoutError):
                    continue
            return found
        for span in await asyncio.to_thread(self.lab.spans):
            if span.trace_id in trace_ids:
                found.setdefault(span.trace_id, []).append(span)
        return found

    async def lines(self, service: str, since: float, until: float = float("inf")) -> list[Line]:
        """The log lines of a service in a time range, in seconds since 1970."""
        await asyncio.sleep(SETTLE)
        return [line for line in self.lab.lines(service) if since <= parse_time(line.timestamp) <= until]


def complete(spans: list[Span], services: set[str], callers: set[str]) -> bool:
    """Whether a trace is complete, as :meth:`Lesson.traces` defines it."""
    ids = {span.span_id for span in spans}
    parents = {span.parent_id for span in spans}
    roots = [span for span in spans if span.parent_id not in ids]
    calls_continue = all(
        span.span_id in parents
        for span in spans
        if SPAN_KINDS[span.kind] == "client" and "http.request.method" in span.attributes
    )
    return (
        len(roots) == 1
        and roots[0].parent_id in callers
        and calls_continue
        and services <= {span.service for span in spans}
    )
