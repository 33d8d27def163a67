"""What an experiment records: the responses to the users, the services' metrics and readiness, and the alerts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from lab.client import Lab
from lab.load.generator import Response
from lab.signals import Sample, total
from lab.waiting import within

SAMPLE_INTERVAL = 0.5  # seconds between two snapshots of the services
ALERT_INTERVAL = 1.0  # seconds between two requests for the alerts
REQUEST_TIMEOUT = 2.0  # seconds


@dataclass(frozen=True)
class Snapshot:
    """One service at one time.

    Attributes:
        at: on the monotonic clock.
        samples: its metrics; ``None`` if it did not respond.
        not_ready: why it is not ready; ``None`` if it is.
    """

    at: float
    samples: list[Sample] | None
    not_ready: str | None

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name that have these labels."""
        return total(self.samples or [], name, labels)


@dataclass
class Firing:
    """When an alert fired that was inactive before the fault; times on the monotonic clock.

    Attributes:
        since: when it was first seen firing.
        until: when it was first seen silent again; ``None`` while it fires.
    """

    since: float
    until: float | None = None


@dataclass
class Observations:
    """Everything recorded of one experiment. Times are on the monotonic clock.

    Attributes:
        wall: seconds to add to the monotonic clock for the time since 1970.
        injected, restored: when the fault was injected, and when it was removed.
        recovered: when responses were 200 again and every service was ready.
        watched: how long the alerts were watched after the end of the fault, in seconds.
        processes_before, processes_after: the process id of each part, before the fault and after the recovery.
        detections: what revealed the fault, and how many seconds after the injection.
        alerts_before: the state of each alert before the fault; empty where there is no Prometheus.
        firing: the alerts that have fired since the injection, by name, the first one first.
    """

    lab: Lab
    responses: list[Response] = field(default_factory=list)
    snapshots: dict[str, list[Snapshot]] = field(default_factory=dict)
    injected: float = 0.0
    restored: float = 0.0
    recovered: float | None = None
    watched: float = 0.0
    processes_before: dict[str, int | None] = field(default_factory=dict)
    processes_after: dict[str, int | None] = field(default_factory=dict)
    detections: dict[str, float] = field(default_factory=dict)
    alerts_before: dict[str, str] = field(default_factory=dict)
    firing: dict[str, Firing] = field(default_factory=dict)
    wall: float = field(default_factory=lambda: time.time() - time.monotonic())

    @property
    def fault(self) -> float:
        """The duration of the fault, in seconds."""
        return self.restored - self.injected

    @property
    def steady(self) -> list[Response]:
        """Responses that arrived before the fault."""
        return [response for response in self.responses if response.started + response.seconds < self.injected]

    @property
    def during(self) -> list[Response]:
        """Responses to requests that started during the fault."""
        return [response for response in self.responses if self.injected <= response.started < self.restored]

    @property
    def after(self) -> list[Response]:
        """Responses to requests that started after the fault."""
        return [response for response in self.responses if response.started >= self.restored]

    def first_good(self) -> float | None:
        """Seconds from the end of the fault to the first 200 of a request that started after it."""
        ends = [response.started + response.seconds for response in self.after if response.status == "200"]
        return min(ends) - self.restored if ends else None

    @property
    def silent(self) -> bool:
        """Whether every alert that has fired since the injection is silent again."""
        return all(one.until is not None for one in self.firing.values())

    def note_alerts(self, states: Mapping[str, str], now: float) -> None:
        """Note the state of every alert at a time."""
        if not self.injected:
            self.alerts_before = dict(states)
            return
        for name, state in states.items():
            if self.alerts_before.get(name, "inactive") != "inactive":
                continue
            if state != "inactive":
                self.note_detection(f"alert {name} pending", now - self.injected)
            if state == "firing":
                self.firing.setdefault(name, Firing(now)).until = None
            elif name in self.firing and self.firing[name].until is None:
                self.firing[name].until = now

    def note_detection(self, what: str, seconds: float) -> None:
        """Note what revealed the fault, and how many seconds after its injection; the earliest time counts."""
        self.detections[what] = min(seconds, self.detections.get(what, seconds))

    def responded(self, service: str) -> list[Snapshot]:
        """The snapshots at which a service responded, oldest first."""
        return [snapshot for snapshot in self.snapshots[service] if snapshot.samples]

    def before(self, service: str) -> Snapshot:
        """The last snapshot of a service before the fault."""
        return [snapshot for snapshot in self.responded(service) if snapshot.at < self.injected][-1]

    def last(self, service: str) -> Snapshot:
        return self.responded(service)[-1]

    def in_fault(self, service: str) -> Iterator[Snapshot]:
        """The snapshots of a service during the fault."""
        return (one for one in self.responded(service) if self.injected <= one.at <= self.restored)


async def snapshot(lab: Lab, service: str) -> Snapshot:
    """Take a snapshot of a service."""
    at = time.monotonic()
    samples: list[Sample] | None = None
    not_ready: str | None = "it does not answer"
    with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            samples = await lab.fetch_samples(service)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            not_ready = await lab.fetch_not_ready(service)
    return Snapshot(at, samples, not_ready)


async def snapshots(lab: Lab) -> dict[str, Snapshot]:
    """A snapshot of each service, taken concurrently."""
    found = await asyncio.gather(*(snapshot(lab, service) for service in lab.services))
    return dict(zip(lab.services, found, strict=True))


async def ready(lab: Lab, timeout: float, poll: float, times: int = 1) -> bool:
    """Wait until all services are ready; returns ``False`` when the time is up.

    Args:
        timeout, poll: in seconds.
        times: the number of consecutive snapshots in which they must be ready.
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
                observations.note_detection(f"{service} not ready", began - observations.injected)
        await asyncio.sleep(max(0.0, SAMPLE_INTERVAL - (time.monotonic() - began)))


async def record_alerts(observations: Observations) -> None:
    """Note the state of every alert in Prometheus at intervals, until cancelled."""
    if "prometheus" not in observations.lab.engines:
        return
    while True:
        with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, KeyError, ValueError):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                states = await observations.lab.fetch_alerts()
            observations.note_alerts(states, time.monotonic())
        await asyncio.sleep(ALERT_INTERVAL)
