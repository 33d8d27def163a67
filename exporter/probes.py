"""The probes behind ``/probe``: each uses a service from outside, as a user would, and measures the result.

A probe detects what a service cannot detect itself: that it is unreachable.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import ClientError, ClientSession
from prometheus_client import CollectorRegistry, Gauge
from yarl import URL

OUTCOMES = ("success", "failed", "wrong_answer", "timeout", "unreachable")
MAX_BODY = 4096  # bytes; the rest of a response is not read


@dataclass(frozen=True)
class Result:
    """The result of one probe.

    Attributes:
        outcome: one of :data:`OUTCOMES`.
        status: the HTTP status; 0 without a response.
        seconds: the duration.
    """

    outcome: str
    status: int
    seconds: float

    def registry(self) -> CollectorRegistry:
        """The result as metrics, with the names that the blackbox exporter uses."""
        registry = CollectorRegistry()
        Gauge("probe_success", "1 if the probe succeeded, else 0.", registry=registry).set(self.outcome == "success")
        Gauge("probe_duration_seconds", "Seconds that the probe took.", registry=registry).set(self.seconds)
        status = Gauge("probe_http_status_code", "HTTP status of the response; 0 without one.", registry=registry)
        status.set(self.status)
        outcomes = Gauge("probe_outcome", "1 for the outcome of the probe, else 0.", ["outcome"], registry=registry)
        for outcome in OUTCOMES:  # all of them: alerting on a series that comes and goes is hard
            outcomes.labels(outcome).set(outcome == self.outcome)
        return registry


async def roll(session: ClientSession, target: URL) -> tuple[str, int]:
    """Roll the fair die, which never fails by design. The roll is a real one: the service counts and traces it."""
    async with session.get(target / "roll", params={"die": "fair"}, allow_redirects=False) as response:
        body = b""
        while len(body) < MAX_BODY and (part := await response.content.read(MAX_BODY - len(body))):
            body += part
    if response.status != 200:
        return "failed", response.status
    try:
        face = json.loads(body)["roll"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "wrong_answer", response.status
    return "success" if face in range(1, 7) else "wrong_answer", response.status


async def ready(session: ClientSession, target: URL) -> tuple[str, int]:
    """Ask whether the service is ready. The service neither counts nor traces this request."""
    async with session.get(target / "readyz", allow_redirects=False) as response:
        return "success" if response.status == 200 else "failed", response.status


Module = Callable[[ClientSession, URL], Awaitable[tuple[str, int]]]
MODULES: dict[str, Module] = {"roll": roll, "ready": ready}


async def probe(session: ClientSession, module: Module, target: URL, timeout: float) -> Result:
    """Probe a target. A failure is a result too, not an exception."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            outcome, status = await module(session, target)
    except TimeoutError:
        outcome, status = "timeout", 0
    except (ClientError, OSError):
        outcome, status = "unreachable", 0
    return Result(outcome, status, time.perf_counter() - started)
