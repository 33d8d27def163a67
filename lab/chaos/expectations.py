"""What was seen of a lab during an experiment, and the questions that its expectations ask of it.

Each question answers with a word on what it saw, or raises :class:`~lab.check.Missing`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from lab import check
from lab.check import Missing, NotRunning
from lab.load.generator import Answer

LOOK_INTERVAL = 0.5  # seconds between two looks at the services
# Memory is back where it was when it is within this share of it, and this many bytes.
MEMORY_SHARE = 1.25
MEMORY_SLACK = 24 * 1024 * 1024
PROMPT = 1.0  # seconds
REFUSED_AT_ONCE = 0.5  # seconds; whoever waits for a connection does so for a whole one

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True)
class Look:
    """One look at a service: when (monotonic), its metrics (``None``: no answer) and what it is not ready for."""

    at: float
    figures: Figures | None
    not_ready: str | None


@dataclass
class Observed:
    """One experiment. Times are on the monotonic clock, ``wall`` is the difference to the wall clock.

    Attributes:
        injected, restored: when the fault was put in, and when it was taken out.
        recovered: when an answer was 200 again and every service ready.
    """

    lab: check.Lab
    answers: list[Answer] = field(default_factory=list)
    looks: dict[str, list[Look]] = field(default_factory=dict)
    injected: float = 0.0
    restored: float = 0.0
    recovered: float | None = None
    processes_before: dict[str, int | None] = field(default_factory=dict)
    processes_after: dict[str, int | None] = field(default_factory=dict)
    signs: dict[str, float] = field(default_factory=dict)  # seconds from the injection to what showed it
    alerts_before: dict[str, str] = field(default_factory=dict)  # the state of each alert
    wall: float = field(default_factory=lambda: time.time() - time.monotonic())

    @property
    def fault(self) -> float:
        return self.restored - self.injected

    @property
    def during(self) -> list[Answer]:
        """Answers to what was asked while the fault was in."""
        return [answer for answer in self.answers if self.injected <= answer.started < self.restored]

    @property
    def steady(self) -> list[Answer]:
        """Answers that had come before the fault."""
        return [answer for answer in self.answers if answer.started + answer.seconds < self.injected]

    def first_good(self) -> float | None:
        """Seconds from the restoration to the first answer of 200 to a question asked after it."""
        ends = [a.started + a.seconds for a in self.answers if a.status == "200" and a.started >= self.restored]
        return min(ends) - self.restored if ends else None

    def sign(self, what: str, seconds: float) -> None:
        """Something showed the fault this long after it was put in."""
        self.signs[what] = min(seconds, self.signs.get(what, seconds))

    def value(self, look: Look, name: str, labels: dict[str, str]) -> float:
        return sum(
            value
            for (found, has), value in (look.figures or {}).items()
            if found == name and labels.items() <= dict(has).items()
        )

    def before(self, service: str) -> Look:
        return [look for look in self.looks[service] if look.figures and look.at < self.injected][-1]

    def last(self, service: str) -> Look:
        return [look for look in self.looks[service] if look.figures][-1]

    def while_in(self, service: str) -> Iterator[Look]:
        return (look for look in self.looks[service] if look.figures and self.injected <= look.at <= self.restored)


async def look(lab: check.Lab, service: str) -> Look:
    """Ask a service for its metrics and whether it is ready."""
    at, url = time.monotonic(), lab.url(service)
    figures: Figures | None = None
    not_ready: str | None = "it does not answer"
    try:
        async with asyncio.timeout(2), lab.session.get(f"{url}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
            figures = {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in families
                if family.type in ("counter", "gauge", "unknown")
                or family.name.startswith(("database_query_duration", "die_service_request_duration"))
                for sample in family.samples
                if not sample.name.endswith("_bucket")
            }
        async with asyncio.timeout(2), lab.session.get(f"{url}/readyz") as response:
            document = json.loads(await response.text())
            not_ready = None if response.status == 200 else str(document.get("detail"))
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        pass
    return Look(at, figures, not_ready)


async def watch(observed: Observed) -> None:
    """Look at all services again and again, until cancelled."""
    services = list(observed.lab.services)
    while True:
        began = time.monotonic()
        for service, seen in zip(
            services, await asyncio.gather(*(look(observed.lab, s) for s in services)), strict=True
        ):
            observed.looks.setdefault(service, []).append(seen)
            if seen.not_ready and observed.injected and began >= observed.injected and not observed.restored:
                observed.sign(f"{service} not ready", began - observed.injected)
        await asyncio.sleep(max(0.0, LOOK_INTERVAL - (time.monotonic() - began)))


Question = Callable[[Observed], Awaitable[str]]


@dataclass(frozen=True)
class Expectation:
    """What is to be seen, in words, and how it is looked for."""

    text: str
    question: Question


def _percentile(answers: list[Answer], share: float) -> float:
    seconds = sorted(answer.seconds for answer in answers)
    return seconds[math.ceil(share * len(seconds)) - 1]


def _statuses(answers: list[Answer]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(Counter(a.status for a in answers).items()))  # noqa: RUF001


# --- answers ---


def only(*statuses: str) -> Expectation:
    async def question(observed: Observed) -> str:
        said = _statuses(observed.answers)
        others = [answer for answer in observed.answers if answer.status not in statuses]
        if others:
            raise Missing(f"{said}; one of the others: trace {others[0].trace_id}")
        without = [a for a in observed.answers if a.status == "503" and "Retry-After" not in a.headers]
        if without:
            raise Missing(f"{len(without)} × 503 without Retry-After, such as trace {without[0].trace_id}")  # noqa: RUF001
        return said

    return Expectation(f"every answer is {' or '.join(statuses)}; a 503 says when to come back", question)


def mostly(status: str, share: float) -> Expectation:
    async def question(observed: Observed) -> str:
        # The first second is left out: what was under way then may have had its die already.
        answers = [
            answer for answer in observed.during if answer.started >= observed.injected + min(1, observed.fault / 4)
        ]
        count = sum(answer.status == status for answer in answers)
        if not answers or count < share * len(answers):
            raise Missing(f"{count} of {len(answers)}: {_statuses(answers)}")
        return f"{count} of {len(answers)}"

    return Expectation(f"while it lasts, at least {share:.0%} of the answers are {status}", question)


def refused_promptly() -> Expectation:
    async def question(observed: Observed) -> str:
        # What was under way when the fault came in cannot have been refused earlier than that.
        refused = sorted(
            answer.started + answer.seconds - max(answer.started, observed.injected)
            for answer in observed.answers
            if answer.status == "503"
        )
        if not refused:
            raise Missing("no answer was 503")
        p99 = refused[math.ceil(0.99 * len(refused)) - 1]
        if p99 >= PROMPT:
            raise Missing(f"p99 of {len(refused)} was {p99 * 1000:.0f} ms")
        return f"p99 of {len(refused)}: {p99 * 1000:.0f} ms"

    return Expectation(f"a 503 is prompt: p99 under {PROMPT:g} s", question)


def sheds(share: float) -> Expectation:
    async def question(observed: Observed) -> str:
        refused = [answer for answer in observed.during if answer.status == "503"]
        if not refused:
            raise Missing("no answer was 503")
        first = min(answer.started + answer.seconds for answer in refused)
        later = [answer for answer in refused if answer.started > first]
        at_once = [answer for answer in later if answer.seconds <= REFUSED_AT_ONCE]
        said = (
            f"the first after {first - observed.injected:.1f} s; from then on {len(at_once)} of {len(later)} within"
            f" {REFUSED_AT_ONCE * 1000:g} ms"
        )
        if not later or len(at_once) < share * len(later):
            raise Missing(said)
        return said

    return Expectation(f"load is shed, not piled up: after the first 503, {share:.0%} of them come at once", question)


def none_hangs(seconds: float) -> Expectation:
    async def question(observed: Observed) -> str:
        longest = max(observed.answers, key=lambda answer: answer.seconds)
        said = f"the longest took {longest.seconds:.2f} s"
        if longest.seconds > seconds:
            raise Missing(f"{said}, trace {longest.trace_id}")
        return said

    return Expectation(f"none hangs: all are answered within {seconds:g} s", question)


def back_within(seconds: float) -> Expectation:
    async def question(observed: Observed) -> str:
        first = observed.first_good()
        if first is None:
            raise Missing("there was none")
        if first > seconds:
            raise Missing(f"after {first:.2f} s")
        return f"after {first:.2f} s"

    return Expectation(f"the first 200 comes within {seconds:g} s of its return", question)


def unaffected() -> Expectation:
    async def question(observed: Observed) -> str:
        before, during = _percentile(observed.steady, 0.5), _percentile(observed.during, 0.5)
        before95, during95 = _percentile(observed.steady, 0.95), _percentile(observed.during, 0.95)
        said = f"p50 {before * 1000:.0f} → {during * 1000:.0f} ms, p95 {before95 * 1000:.0f} → {during95 * 1000:.0f} ms"
        if during > 1.25 * before + 0.05 or during95 > 1.25 * before95 + 0.1:
            raise Missing(said)
        return said

    return Expectation("answers take as long as before, within noise", question)


# --- metrics ---


def _selector(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


async def _in_prometheus(observed: Observed, expression: str) -> str:
    if "prometheus" not in observed.lab.engines:
        return ""
    await observed.lab.prometheus(expression)
    return ", in Prometheus too"


def grows(service: str, name: str, **labels: str) -> Expectation:
    async def question(observed: Observed) -> str:
        before = observed.value(observed.before(service), name, labels)
        after = observed.value(observed.last(service), name, labels)
        if after <= before:
            raise Missing(f"{before:g} before, {after:g} after")
        for seen in observed.while_in(service):
            if observed.value(seen, name, labels) > before:
                observed.sign(f"{name} of the {service}", seen.at - observed.injected)
                break
        selector = _selector(name, {"job": service, **labels})
        seconds = int(time.monotonic() - observed.injected) + 10
        where = await _in_prometheus(observed, f"max_over_time({selector}[{seconds}s]) > {before}")
        return f"by {after - before:g}{where}"

    return Expectation(f"{_selector(name, labels)} of the {service} grows", question)


def is_seen(service: str, name: str, value: float) -> Expectation:
    async def question(observed: Observed) -> str:
        seen = [observed.value(one, name, {}) for one in observed.while_in(service)]
        if value not in seen:
            raise Missing(f"seen: {', '.join(f'{one:g}' for one in dict.fromkeys(seen)) or 'nothing'}")
        return f"in {seen.count(value)} of {len(seen)} looks"

    return Expectation(f"{name} of the {service} is {value:g} while it lasts", question)


def mean_at_least(service: str, name: str, seconds: float) -> Expectation:
    async def question(observed: Observed) -> str:
        looks = [one for one in observed.looks[service] if one.figures and one.at >= observed.before(service).at]
        means = []
        # From look to look, so that what was quick before and afterwards does not hide it.
        for first, last in pairwise(looks):
            count, total = (
                observed.value(last, f"{name}_{part}", {}) - observed.value(first, f"{name}_{part}", {})
                for part in ("count", "sum")
            )
            if count > 0:
                means.append(total / count)
        if not means or max(means) < seconds * 0.9:
            raise Missing(f"{max(means):.3f} s" if means else "nothing was observed")
        return f"{max(means):.3f} s"

    return Expectation(f"{name} of the {service} goes up to {seconds:g} s or more", question)


def pool_is_right_again() -> Expectation:
    async def question(observed: Observed) -> str:
        service = "die-service"
        size = observed.value(observed.before(service), "database_connection_pool_size", {})
        now = await look(observed.lab, service)
        names = ("database_connection_pool_size", "database_connection_pool_available")
        open_, free = (observed.value(now, name, {}) for name in names)
        if (open_, free) != (size, size):
            raise Missing(f"{open_:g} open, {free:g} free, of {size:g}")
        return f"{open_:g} open, {free:g} free"

    return Expectation("afterwards the pool's gauges are right: all open, all free", question)


def memory_is_back(*services: str) -> Expectation:
    async def question(observed: Observed) -> str:
        said, grown = [], []
        for service in services:
            before = observed.value(observed.before(service), "process_resident_memory_bytes", {})
            now = observed.value(await look(observed.lab, service), "process_resident_memory_bytes", {})
            said.append(f"{service} {before / 2**20:.0f} → {now / 2**20:.0f} MiB")
            if now > before * MEMORY_SHARE + MEMORY_SLACK:
                grown.append(service)
        if grown:
            raise Missing(", ".join(said))
        return ", ".join(said)

    return Expectation("afterwards memory is back where it was", question)


def same_processes(*but: str) -> Expectation:
    async def question(observed: Observed) -> str:
        before, after = observed.processes_before, observed.processes_after
        changed = {name for name in before if name not in but and after.get(name) != before[name]}
        unchanged = {name for name in but if after.get(name) == before.get(name)}
        if changed or unchanged:
            raise Missing(
                f"another one: {', '.join(sorted(changed)) or '-'}; the same: {', '.join(sorted(unchanged)) or '-'}"
            )
        return f"another one: {', '.join(but)}" if but else f"all {len(before)} are the same"

    what = f"no process but the {', the '.join(but)} is another one" if but else "no process has restarted"
    return Expectation(what, question)


def not_ready(*services: str) -> Expectation:
    async def question(observed: Observed) -> str:
        said = []
        for service in services:
            looks = [one for one in observed.looks[service] if observed.injected <= one.at <= observed.restored]
            red = next((one for one in looks if one.not_ready), None)
            if red is None:
                raise Missing(f"the {service} said that it was ready all the time")
            said.append(f"{service} after {red.at - observed.injected:.1f} s")
        return ", ".join(said)

    return Expectation(f"/readyz of the {' and the '.join(services)} says so", question)


# --- logs, spans, alerts ---


def logged(service: str, level: str, message: str, **fields: Any) -> Expectation:
    wanted = {"level": level, "message": message, **fields}

    async def question(observed: Observed) -> str:
        count, first = 0, 0.0
        for line in await asyncio.to_thread(observed.lab.log_lines, service):
            try:
                document = json.loads(line)
                at = datetime.fromisoformat(document["timestamp"]).timestamp() - observed.wall
            except (ValueError, KeyError, TypeError):
                continue
            # Log lines know milliseconds, cut off.
            if at >= observed.injected - 0.001 and wanted.items() <= document.items():
                first = first if count else at
                count += 1
        if not count:
            raise Missing(f"no such line of the {service} since then")
        if level in ("WARNING", "ERROR"):
            observed.sign(f"log line {message!r} of the {service}", first - observed.injected)
        return f"{count} lines, the first after {first - observed.injected:.1f} s"

    said = " ".join(f"{name}={value}" for name, value in fields.items())
    return Expectation(f"the {service} logs {level} {message!r}{' ' if said else ''}{said}", question)


def span_failed(service: str, name: str, status: str = "503") -> Expectation:
    async def question(observed: Observed) -> str:
        tried = [answer for answer in observed.during if answer.status == status][-3:]
        if not tried:
            raise Missing(f"no answer was {status}")
        for answer in tried:
            spans = await observed.lab.trace(answer.trace_id)
            if any((span.service, span.name, span.failed) == (service, name, True) for span in spans):
                return f"trace {answer.trace_id}"
        raise Missing(f"not in the trace of an answer of {status}, {tried[-1].trace_id}")

    return Expectation(f"in the trace of a {status} the span {name!r} of the {service} has status ERROR", question)


def span_lasts(service: str, name: str, seconds: float) -> Expectation:
    async def question(observed: Observed) -> str:
        # Those that had their answer while the fault was in: its end cuts short what is under way.
        good = [a for a in observed.during if a.status == "200" and a.started + a.seconds < observed.restored]
        tried = sorted(good, key=lambda answer: answer.seconds)[-3:]
        for answer in reversed(tried):
            for span in await observed.lab.trace(answer.trace_id):
                if (span.service, span.name) == (service, name) and span.end - span.start >= seconds * 1e9:
                    return f"{(span.end - span.start) / 1e9:.2f} s in trace {answer.trace_id}"
        raise Missing(f"not in the traces of the {len(tried)} slowest answers of 200")

    return Expectation(f"in a slow trace the span {name!r} of the {service} lasts {seconds:g} s or more", question)


def trace_arrives() -> Expectation:
    async def question(observed: Observed) -> str:
        good = [answer for answer in observed.during if answer.status == "200"]
        if not good:
            raise Missing("no answer was 200")
        answer = good[len(good) // 2]
        missing = {"traffic", *observed.lab.services} - {
            span.service for span in await observed.lab.trace(answer.trace_id)
        }
        if missing:
            raise Missing(f"trace {answer.trace_id} lacks {', '.join(sorted(missing))}")
        return f"trace {answer.trace_id} is whole"

    return Expectation("spans of that time arrive when it is back", question)


def none_dropped() -> Expectation:
    async def question(observed: Observed) -> str:
        for service in observed.lab.services:
            before = observed.value(observed.before(service), "telemetry_dropped_total", {"signal": "traces"})
            dropped = observed.value(observed.last(service), "telemetry_dropped_total", {"signal": "traces"}) - before
            if dropped:
                raise Missing(f"the {service} dropped {dropped:g} spans")
        return f"0 on the {', the '.join(observed.lab.services)}"

    return Expectation("telemetry_dropped_total stays: the services' queues hold it", question)


def alert(name: str, after: float = 20.0) -> Expectation:
    """The alert is pending or firing, looked for where the fault lasts ``after`` seconds at the least."""

    async def question(observed: Observed) -> str:
        if "prometheus" not in observed.lab.engines:
            raise NotRunning("no Prometheus runs")
        if f"alert {name} pending" not in observed.signs and observed.fault < after:
            raise NotRunning(f"it needs {after:g} s of fault")
        return await _alert_seen(observed, name)

    return Expectation(f"the alert {name} is pending or fires", question)


def alert_stays_quiet(name: str) -> Expectation:
    async def question(observed: Observed) -> str:
        if "prometheus" not in observed.lab.engines:
            raise NotRunning("no Prometheus runs")
        state = (await alerts(observed.lab)).get(name)
        if state is None:
            raise NotRunning("Prometheus has no such rule")
        if state == "firing":
            raise Missing("it fires")
        return f"it is {state}"

    return Expectation(f"the alert {name} does not fire", question)


async def _alert_seen(observed: Observed, name: str) -> str:
    seen = observed.signs.get(f"alert {name} pending")
    if seen is None:
        known = await alerts(observed.lab)
        if name not in known:
            raise NotRunning("Prometheus has no such rule")
        if observed.alerts_before.get(name, "inactive") != "inactive":
            raise NotRunning(f"it was {observed.alerts_before[name]} before")
        raise Missing("it stayed inactive")
    return f"after {seen:.1f} s"


async def alerts(lab: check.Lab) -> dict[str, str]:
    """Each alert that Prometheus has a rule for, and its state: inactive, pending or firing."""
    url = f"{lab.engines['prometheus']}/api/v1/rules"
    async with lab.session.get(url, params={"type": "alert"}) as response:
        groups = (await response.json())["data"]["groups"]
    found: dict[str, str] = {}
    for group in groups:
        for rule in group["rules"]:
            if found.get(rule["name"], "inactive") == "inactive":
                found[rule["name"]] = rule["state"]
    return found


async def watch_alerts(observed: Observed) -> None:
    """Note when an alert that was inactive before no longer is, until cancelled."""
    if "prometheus" not in observed.lab.engines:
        return
    before = observed.alerts_before
    while True:
        try:
            now = await alerts(observed.lab)
        except (aiohttp.ClientError, asyncio.TimeoutError, KeyError, ValueError):
            now = {}
        for name, state in now.items():
            if not observed.injected:
                before[name] = state
            elif state != "inactive" and before.get(name) in (None, "inactive"):
                observed.sign(f"alert {name} pending", time.monotonic() - observed.injected)
        await asyncio.sleep(1.0)
