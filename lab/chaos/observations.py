"""What is recorded of a lab during an experiment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from lab.client import Lab
from lab.load.generator import Answer
from lab.signals import Sample, total
from lab.waiting import within

SAMPLE_INTERVAL = 0.5  # seconds between two snapshots of the services
ALERT_INTERVAL = 1.0  # seconds between two looks at the alerts
PATIENCE = 2.0  # seconds for the answer to one question


@dataclass(frozen=True)
class Snapshot:
    """One service at one time.

    Attributes:
        at: on the monotonic clock.
        samples: its metrics; ``None`` if it did not answer.
        not_ready: why it is not ready; ``None`` if it is.
    """

    at: float
    samples: list[Sample] | None
    not_ready: str | None

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name that have these labels."""
        return total(self.samples or [], name, labels)


@dataclass
class Observations:
    """Everything recorded of one experiment. Times are on the monotonic clock.

    Attributes:
        wall: the difference from the monotonic clock to the time of day, in seconds.
        injected, restored: when the fault was put in, and when it was taken out.
        recovered: when an answer was 200 again and every service ready.
        signs: what showed the fault, and how many seconds after the injection.
        alerts_before: the state of each alert before the fault.
    """

    lab: Lab
    answers: list[Answer] = field(default_factory=list)
    snapshots: dict[str, list[Snapshot]] = field(default_factory=dict)
    injected: float = 0.0
    restored: float = 0.0
    recovered: float | None = None
    processes_before: dict[str, int | None] = field(default_factory=dict)
    processes_after: dict[str, int | None] = field(default_factory=dict)
    signs: dict[str, float] = field(default_factory=dict)
    alerts_before: dict[str, str] = field(default_factory=dict)
    wall: float = field(default_factory=lambda: time.time() - time.monotonic())

    @property
    def fault(self) -> float:
        """The duration of the fault, in seconds."""
        return self.restored - self.injected

    @property
    def steady(self) -> list[Answer]:
        """Answers that had come before the fault."""
        return [answer for answer in self.answers if answer.started + answer.seconds < self.injected]

    @property
    def during(self) -> list[Answer]:
        """Answers to requests that started during the fault."""
        return [answer for answer in self.answers if self.injected <= answer.started < self.restored]

    @property
    def after(self) -> list[Answer]:
        """Answers to requests that started after the fault."""
        return [answer for answer in self.answers if answer.started >= self.restored]

    def first_good(self) -> float | None:
        """Seconds from the end of the fault to the first 200 of a request that started after it."""
        ends = [answer.started + answer.seconds for answer in self.after if answer.status == "200"]
        return min(ends) - self.restored if ends else None

    def sign(self, what: str, seconds: float) -> None:
        """Note what showed the fault, and how many seconds after its injection; the earliest time counts."""
        self.signs[what] = min(seconds, self.signs.get(what, seconds))

    def answered(self, service: str) -> list[Snapshot]:
        """The snapshots of a service that answered, oldest first."""
        return [snapshot for snapshot in self.snapshots[service] if snapshot.samples]

    def before(self, service: str) -> Snapshot:
        """The last snapshot of a service before the fault."""
        return [snapshot for snapshot in self.answered(service) if snapshot.at < self.injected][-1]

    def last(self, service: str) -> Snapshot:
        return self.answered(service)[-1]

    def in_fault(self, service: str) -> Iterator[Snapshot]:
        """The snapshots of a service during the fault."""
        return (one for one in self.answered(service) if self.injected <= one.at <= self.restored)


async def snapshot(lab: Lab, service: str) -> Snapshot:
    """Take a snapshot of a service."""
    at = time.monotonic()
    samples: list[Sample] | None = None
    not_ready: str | None = "it does not answer"
    with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        async with asyncio.timeout(PATIENCE):
            samples = await lab.fetch_samples(service)
        async with asyncio.timeout(PATIENCE):
            not_ready = await lab.fetch_not_ready(service)
    return Snapshot(at, samples, not_ready)


async def snapshots(lab: Lab) -> dict[str, Snapshot]:
    """A snapshot of each service, taken concurrently."""
    found = await asyncio.gather(*(snapshot(lab, service) for service in lab.services))
    return dict(zip(lab.services, found, strict=True))


async def ready(lab: Lab, timeout: float, poll: float, times: int = 1) -> bool:
    """Wait until all services are ready; returns whether they were in time.

    Args:
        timeout, poll: in seconds.
        times: in so many consecutive snapshots.
    """
    consecutive = 0
    async for _ in within(timeout, poll):
        unready = any(one.not_ready for one in (await snapshots(lab)).values())
        consecutive = 0 if unready else consecutive + 1
        if consecutive >= times:
            return True
    return False


async def record_services(observations: Observations) -> None:
    """Take snapshots of all services at intervals, until cancelled."""
    while True:
        began = time.monotonic()
        for service, one in (await snapshots(observations.lab)).items():
            observations.snapshots.setdefault(service, []).append(one)
            in_fault = observations.injected and began >= observations.injected and not observations.restored
            if one.not_ready and in_fault:
                observations.sign(f"{service} not ready", began - observations.injected)
        await asyncio.sleep(max(0.0, SAMPLE_INTERVAL - (time.monotonic() - began)))


async def record_alerts(observations: Observations) -> None:
    """Note when an alert that was inactive before the fault becomes pending, until cancelled."""
    if "prometheus" not in observations.lab.engines:
        return
    while True:
        try:
            alerts = await observations.lab.fetch_alerts()
        except (aiohttp.ClientError, asyncio.TimeoutError, KeyError, ValueError):
            alerts = {}
        for name, state in alerts.items():
            if not observations.injected:
                observations.alerts_before[name] = state
            elif state != "inactive" and observations.alerts_before.get(name) in (None, "inactive"):
                observations.sign(f"alert {name} pending", time.monotonic() - observations.injected)
        await asyncio.sleep(ALERT_INTERVAL)
