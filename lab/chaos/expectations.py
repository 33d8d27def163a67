"""What an experiment expects: each expectation in words, and as a check of the observations.

A check returns a short description of what was found. It raises :class:`~lab.client.Missing` when the expectation is
not met, and :class:`~lab.client.NotRunning` when this lab cannot tell.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from lab.chaos.observations import Observations, snapshot
from lab.client import DIE_SERVICE, Missing, NotRunning
from lab.load.generator import Response
from lab.load.latency import Latencies
from lab.signals import Span, parse_line
from lab.waiting import gather

# Memory has recovered if it is at most this factor and this many bytes above its value before the fault.
MEMORY_FACTOR = 1.25
MEMORY_SLACK = 24 * 1024 * 1024
PROMPT = 1.0  # seconds
# Seconds: less than the second that a request waits for a connection before it is refused.
REFUSED_AT_ONCE = 0.5
CONCURRENT_FETCHES = 4  # of traces
SAMPLE = 200  # traces from the middle of a fault that are fetched
POOL_SIZE, POOL_AVAILABLE = "database_connection_pool_size", "database_connection_pool_available"
MEMORY = "process_resident_memory_bytes"

Check = Callable[[Observations], Awaitable[str]]


@dataclass(frozen=True)
class Expectation:
    """An expectation in words, and the check that decides whether it is met.

    Attributes:
        timed: whether it depends on the duration of responses, which other work on this machine lengthens.
    """

    text: str
    check: Check
    timed: bool = False


def _statuses(responses: list[Response]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(Counter(r.status for r in responses).items()))  # noqa: RUF001


# --- responses ---


def only(*statuses: str) -> Expectation:
    async def check(observed: Observations) -> str:
        found = _statuses(observed.responses)
        others = [response for response in observed.responses if response.status not in statuses]
        if others:
            raise Missing(f"{found}; another status in trace {others[0].trace_id}")
        without = [r for r in observed.responses if r.status == "503" and "Retry-After" not in r.headers]
        if without:
            raise Missing(f"{len(without)} × 503 without Retry-After, such as trace {without[0].trace_id}")  # noqa: RUF001
        return found

    return Expectation(f"every response is {' or '.join(statuses)}; a 503 has a Retry-After header", check)


def mostly(status: str, share: float) -> Expectation:
    async def check(observed: Observations) -> str:
        # Without the first second: requests in flight may have fetched their die before the fault.
        responses = [
            response
            for response in observed.during
            if response.started >= observed.injected + min(1, observed.fault / 4)
        ]
        count = sum(response.status == status for response in responses)
        if not responses or count < share * len(responses):
            raise Missing(f"{count} of {len(responses)}: {_statuses(responses)}")
        return f"{count} of {len(responses)}"

    return Expectation(f"during the fault at least {share:.0%} of the responses are {status}", check)


def refused_promptly() -> Expectation:
    async def check(observed: Observations) -> str:
        # A request in flight at the injection is timed from the injection: it cannot be refused earlier.
        refused = Latencies(
            response.started + response.seconds - max(response.started, observed.injected)
            for response in observed.responses
            if response.status == "503"
        )
        if not len(refused):
            raise Missing("no response was 503")
        p99 = refused.percentile(99)
        if p99 >= PROMPT:
            raise Missing(f"p99 of {len(refused)} was {p99 * 1000:.0f} ms")
        return f"p99 of {len(refused)}: {p99 * 1000:.0f} ms"

    return Expectation(f"a 503 is prompt: p99 under {PROMPT:g} s", check, timed=True)


def sheds(share: float) -> Expectation:
    async def check(observed: Observations) -> str:
        refused = [response for response in observed.during if response.status == "503"]
        if not refused:
            raise Missing("no response was 503")
        first = min(response.started + response.seconds for response in refused)
        later = [response for response in refused if response.started > first]
        at_once = [response for response in later if response.seconds <= REFUSED_AT_ONCE]
        found = (
            f"the first after {first - observed.injected:.1f} s; from then on {len(at_once)} of {len(later)} within"
            f" {REFUSED_AT_ONCE * 1000:g} ms"
        )
        if not later or len(at_once) < share * len(later):
            raise Missing(found)
        return found

    return Expectation(f"load is shed: after the first 503, {share:.0%} of them come at once", check, timed=True)


def none_hangs(seconds: float) -> Expectation:
    async def check(observed: Observations) -> str:
        longest = max(observed.responses, key=lambda response: response.seconds)
        found = f"the longest took {longest.seconds:.2f} s"
        if longest.seconds > seconds:
            raise Missing(f"{found}, trace {longest.trace_id}")
        return found

    return Expectation(f"no request hangs: each ends within {seconds:g} s", check)


def back_within(seconds: float) -> Expectation:
    async def check(observed: Observations) -> str:
        first = observed.first_good()
        if first is None:
            raise Missing("there was no 200")
        if first > seconds:
            raise Missing(f"after {first:.2f} s")
        return f"after {first:.2f} s"

    return Expectation(f"the first 200 comes within {seconds:g} s of the end of the fault", check, timed=True)


def unaffected() -> Expectation:
    async def check(observed: Observations) -> str:
        before, during = (
            Latencies(response.seconds for response in responses) for responses in (observed.steady, observed.during)
        )
        p50, p95 = ((before.percentile(percent), during.percentile(percent)) for percent in (50, 95))
        found = ", ".join(
            f"{name} {was * 1000:.0f} → {now * 1000:.0f} ms" for name, (was, now) in (("p50", p50), ("p95", p95))
        )
        if p50[1] > 1.25 * p50[0] + 0.05 or p95[1] > 1.25 * p95[0] + 0.1:
            raise Missing(found)
        return found

    return Expectation("responses take as long as before, within noise", check, timed=True)


# --- metrics ---


def _selector(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


async def _in_prometheus(observed: Observations, expression: str) -> str:
    if "prometheus" not in observed.lab.engines:
        return ""
    await observed.lab.fetch_prometheus(expression)
    return ", in Prometheus too"


def grows(service: str, name: str, **labels: str) -> Expectation:
    async def check(observed: Observations) -> str:
        before = observed.before(service).value(name, **labels)
        after = observed.last(service).value(name, **labels)
        if after <= before:
            raise Missing(f"{before:g} before, {after:g} after")
        for one in observed.in_fault(service):
            if one.value(name, **labels) > before:
                observed.note_detection(f"{name} of the {service}", one.at - observed.injected)
                break
        selector = _selector(name, {"job": service, **labels})
        seconds = int(time.monotonic() - observed.injected) + 10
        where = await _in_prometheus(observed, f"max_over_time({selector}[{seconds}s]) > {before}")
        return f"by {after - before:g}{where}"

    return Expectation(f"{_selector(name, labels)} of the {service} grows", check)


def is_seen(service: str, name: str, value: float) -> Expectation:
    async def check(observed: Observations) -> str:
        seen = [one.value(name) for one in observed.in_fault(service)]
        if value not in seen:
            raise Missing(f"seen: {', '.join(f'{one:g}' for one in dict.fromkeys(seen)) or 'nothing'}")
        return f"in {seen.count(value)} of {len(seen)} samples"

    return Expectation(f"{name} of the {service} is {value:g} during the fault", check)


def mean_at_least(service: str, name: str, seconds: float) -> Expectation:
    async def check(observed: Observations) -> str:
        taken = [one for one in observed.responded(service) if one.at >= observed.before(service).at]
        means = []
        # Between consecutive samples, so that fast observations before and afterwards do not hide the slow ones.
        for first, last in pairwise(taken):
            count, total = (last.value(f"{name}_{part}") - first.value(f"{name}_{part}") for part in ("count", "sum"))
            if count > 0:
                means.append(total / count)
        if not means or max(means) < seconds * 0.9:
            raise Missing(f"{max(means):.3f} s" if means else "nothing was observed")
        return f"{max(means):.3f} s"

    return Expectation(f"the mean of {name} of the {service} rises to {seconds:g} s or more", check)


def pool_is_right_again() -> Expectation:
    async def check(observed: Observations) -> str:
        size = observed.before(DIE_SERVICE).value(POOL_SIZE)
        now = await snapshot(observed.lab, DIE_SERVICE)
        open_, free = now.value(POOL_SIZE), now.value(POOL_AVAILABLE)
        if (open_, free) != (size, size):
            raise Missing(f"{open_:g} open, {free:g} free, of {size:g}")
        return f"{open_:g} open, {free:g} free"

    return Expectation("afterwards the pool's gauges are right: all open, all free", check)


def memory_is_back(*services: str) -> Expectation:
    async def check(observed: Observations) -> str:
        found, grown = [], []
        for service in services:
            before = observed.before(service).value(MEMORY)
            now = (await snapshot(observed.lab, service)).value(MEMORY)
            if not now:
                raise Missing(f"the {service} does not answer")
            found.append(f"{service} {before / 2**20:.0f} → {now / 2**20:.0f} MiB")
            if now > before * MEMORY_FACTOR + MEMORY_SLACK:
                grown.append(service)
        if grown:
            raise Missing(", ".join(found))
        return ", ".join(found)

    return Expectation("afterwards memory is back where it was", check)


def same_processes(*but: str) -> Expectation:
    async def check(observed: Observations) -> str:
        before, after = observed.processes_before, observed.processes_after
        changed = {name for name in before if name not in but and after.get(name) != before[name]}
        unchanged = {name for name in but if after.get(name) == before.get(name)}
        if changed or unchanged:
            raise Missing(f"restarted: {', '.join(sorted(changed)) or '-'}; not: {', '.join(sorted(unchanged)) or '-'}")
        return f"restarted: {', '.join(but)}" if but else f"all {len(before)} are the same"

    what = f"no process but the {', the '.join(but)} has restarted" if but else "no process has restarted"
    return Expectation(what, check)


def not_ready(*services: str) -> Expectation:
    async def check(observed: Observations) -> str:
        found = []
        for service in services:
            taken = [one for one in observed.snapshots[service] if observed.injected <= one.at <= observed.restored]
            unready = next((one for one in taken if one.not_ready), None)
            if unready is None:
                raise Missing(f"the {service} was ready all the time")
            found.append(f"{service} after {unready.at - observed.injected:.1f} s")
        return ", ".join(found)

    return Expectation(f"/readyz of the {' and the '.join(services)} shows it", check)


# --- logs, spans, alerts ---


def logged(service: str, level: str, message: str, **fields: Any) -> Expectation:
    async def check(observed: Observations) -> str:
        found = []
        for line in await asyncio.to_thread(lambda: list(observed.lab.lines(service))):
            if line.has(level=level, message=message, **fields):
                at = datetime.fromisoformat(line.timestamp).timestamp() - observed.wall
                if at >= observed.injected - 0.001:  # timestamps are cut off to milliseconds
                    found.append(at - observed.injected)
        if not found:
            raise Missing(f"no such line of the {service} since the injection")
        if level in ("WARNING", "ERROR"):
            observed.note_detection(f"log line {message!r} of the {service}", found[0])
        return f"{len(found)} lines, the first after {found[0]:.1f} s"

    words = "".join(f" {name}={value}" for name, value in fields.items())
    return Expectation(f"the {service} logs {level} {message!r}{words}", check)


def span_failed(service: str, name: str, status: str = "503") -> Expectation:
    async def check(observed: Observations) -> str:
        # The last three for each reason: a service that sheds load refuses requests without calling the next service.
        by_reason: dict[str, list[Response]] = {}
        for response in observed.during:
            if response.status == status:
                by_reason.setdefault(str(response.document.get("detail")), []).append(response)
        if not by_reason:
            raise Missing(f"no response was {status}")
        tried = [response for responses in by_reason.values() for response in responses[-3:]]
        for response in tried:
            with suppress(Missing):
                spans = await observed.lab.fetch_trace(response.trace_id)
                if any((span.service, span.name, span.failed) == (service, name, True) for span in spans):
                    return f"trace {response.trace_id}"
        raise Missing(f"not in the traces of {len(tried)} responses of {status}, such as {tried[-1].trace_id}")

    return Expectation(f"in the trace of a {status} the span {name!r} of the {service} has status ERROR", check)


def span_lasts(service: str, name: str, seconds: float) -> Expectation:
    async def check(observed: Observations) -> str:
        # Only requests that were served during the fault: its end shortens the spans of those in flight.
        good = [r for r in observed.during if r.status == "200" and r.started + r.seconds < observed.restored]
        tried = sorted(good, key=lambda response: response.seconds)[-3:]
        for response in reversed(tried):
            for span in await observed.lab.fetch_trace(response.trace_id):
                if (span.service, span.name) == (service, name) and span.end - span.start >= seconds * 1e9:
                    return f"{(span.end - span.start) / 1e9:.2f} s in trace {response.trace_id}"
        raise Missing(f"not in the traces of the {len(tried)} slowest responses of 200")

    return Expectation(f"in a slow trace the span {name!r} of the {service} lasts {seconds:g} s or more", check)


def none_dropped() -> Expectation:
    async def check(observed: Observations) -> str:
        for service in observed.lab.services:
            before, after = (
                one.value("telemetry_dropped_total", signal="traces")
                for one in (observed.before(service), observed.last(service))
            )
            if after > before:
                raise Missing(f"the {service} dropped {after - before:g} spans")
        return f"0 on the {', the '.join(observed.lab.services)}"

    return Expectation("telemetry_dropped_total does not grow: the services' queues hold the spans", check)


def lines_arrive(doubled: float = 0.0) -> Expectation:
    """Every line from shortly before the fault to its end is in Loki.

    Args:
        doubled: the share of the lines that may be there twice.
    """

    async def check(observed: Observations) -> str:
        lab = observed.lab
        start, end = observed.injected + observed.wall - 2, observed.restored + observed.wall + 1
        written: Counter[str] = Counter()
        for service in lab.services:
            for text in await asyncio.to_thread(lab.log_lines, service):
                with suppress(ValueError):  # a killed process may have left half a line
                    if start <= datetime.fromisoformat(parse_line(text).timestamp).timestamp() < end:
                        written[text] += 1
        stored = await lab.fetch_loki_texts(start - 1, end + 1)
        lost = (written - stored).total()
        again = sum(max(0, stored[text] - count) for text, count in written.items())
        found = f"{lost} of {written.total()} lost, {again} doubled"
        if not written or lost or again > doubled * written.total():
            raise Missing(found)
        return found

    bound = f"at most {doubled:.0%} of them twice" if doubled else "none twice"
    return Expectation(f"every log line of that time is in Loki, {bound}", check)


def _is_whole(response: Response, spans: list[Span], services: set[str]) -> bool:
    """Whether a trace has spans of each service and of each roll, and no span whose parent is missing."""
    ids = {span.span_id for span in spans}
    rolls = sum(span.name.startswith("roll ") for span in spans)
    return (
        services <= {span.service for span in spans}
        and rolls >= response.document.get("count", 0)
        and all(not span.parent_id or span.parent_id in ids for span in spans)
    )


def traces_lost(seconds: float = 0.0, meanwhile: bool = False) -> Expectation:
    """Only traces of the last seconds before the fault lack spans; none if ``seconds`` is 0.

    Args:
        meanwhile: whether traces during the fault may lack spans as well.
    """

    async def check(observed: Observations) -> str:
        if await observed.lab.fetch_sampling():
            raise NotRunning("the Collector keeps a sample of such traces")
        margin = max(2 * seconds, 4.0)
        served = [
            (response.started + response.seconds, response)
            for response in observed.responses
            if response.status == "200"
            and observed.injected - margin < response.started + response.seconds
            and response.started < observed.restored + margin / 2
        ]
        # All at the beginning and at the end of the fault, but only a sample in between: each takes a query of its own.
        edges = [one for at, one in served if min(abs(at - observed.injected), abs(at - observed.restored)) <= margin]
        between = [one for at, one in served if min(abs(at - observed.injected), abs(at - observed.restored)) > margin]
        near = edges + between[:: max(1, len(between) // SAMPLE)]
        services = {"traffic", *observed.lab.services}

        async def lacks_spans(response: Response) -> bool:
            try:
                return not _is_whole(response, await observed.lab.fetch_trace(response.trace_id), services)
            except Missing:
                return True

        lacking = await gather(lacks_spans, near, CONCURRENT_FETCHES)
        incomplete = [response for response, lacks in zip(near, lacking, strict=True) if lacks]
        if not incomplete:
            return f"none of {len(near)}"
        ends = [response.started + response.seconds - observed.injected for response in incomplete]
        found = (
            f"{len(incomplete)} of {len(near)}, answered {min(ends):+.1f} s to {max(ends):+.1f} s relative to its start"
        )
        # A request that was in flight at the injection may lack spans too: some had been sent before it.
        last = observed.restored if meanwhile else observed.injected
        if not seconds or min(ends) < -seconds or any(response.started > last for response in incomplete):
            raise Missing(found)
        return found

    if not seconds:
        return Expectation("no trace of that time lacks a span", check)
    during = "and of its time " if meanwhile else ""
    return Expectation(f"only traces of the last {seconds:g} s before the fault {during}lack spans", check)


def counters_catch_up(service: str, name: str, **labels: str) -> Expectation:
    """After the fault Prometheus has the value that the service exposes, although it missed scrapes."""

    async def check(observed: Observations) -> str:
        selector = _selector(name, {"job": service, **labels})
        said = (await snapshot(observed.lab, service)).value(name, **labels)
        rows = await observed.lab.fetch_prometheus(f"sum({selector}) == {said}")
        seconds = int(observed.fault)
        gap = await observed.lab.fetch_prometheus(f'scalar(count_over_time(up{{job="{service}"}}[{seconds + 20}s]))')
        return f"{float(rows[0]['value'][1]):g}, from {float(gap[1]):g} scrapes in {seconds + 20} s"

    return Expectation(f"afterwards {name} is in Prometheus what the {service} says", check)


def alert(name: str, after: float = 20.0) -> Expectation:
    """The alert becomes pending or fires. Not checked when the fault is shorter than ``after`` seconds."""

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        seen = observed.detections.get(f"alert {name} pending")
        if seen is not None:
            return f"after {seen:.1f} s"
        if observed.fault < after:
            raise NotRunning(f"it takes a fault of {after:g} s")
        if name not in await observed.lab.fetch_alerts():
            raise NotRunning("Prometheus has no such rule")
        if (state := observed.alerts_before.get(name, "inactive")) != "inactive":
            raise NotRunning(f"it was {state} before")
        raise Missing("it stayed inactive")

    return Expectation(f"the alert {name} is pending or fires", check)


def first_alert(*names: str, within: float, during: bool) -> Expectation:
    """One of these alerts is the first that fires.

    Args:
        names: the alerts; without names, no alert may fire.
        within: seconds after the injection.
        during: whether the alert fires only if the fault lasts that long.
    """

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        if not observed.alerts_before:
            raise NotRunning("Prometheus has no rules")
        fired = {name: one.since - observed.injected for name, one in observed.firing.items()}
        said = ", ".join(f"{name} after {seconds:.0f} s" for name, seconds in fired.items())
        if not names:
            if fired:
                raise Missing(said)
            return "none fired"
        if not fired and during and observed.fault < within:
            raise NotRunning(f"it takes a fault of {within:g} s")
        if all(observed.alerts_before.get(name, "inactive") != "inactive" for name in names):
            raise NotRunning("it was not inactive before")
        first = next(iter(fired), None)
        if first not in names or fired[first] > within:
            raise Missing(said or "none fired")
        return said

    what = f"{' or '.join(names)} is the first alert that fires, within {within:g} s" if names else "no alert fires"
    return Expectation(what, check)


def alerts_fall_silent(within: float) -> Expectation:
    """Every alert that has fired is silent again at most ``within`` seconds after the end of the fault."""

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        if not observed.firing:
            raise NotRunning("no alert has fired")
        silent = {n: None if one.until is None else one.until - observed.restored for n, one in observed.firing.items()}
        found = ", ".join(
            f"{n} {'still fires' if s is None else f'after {max(0.0, s):.0f} s'}" for n, s in silent.items()
        )
        if observed.watched < within and not observed.silent:
            raise NotRunning(f"that takes up to {within:g} s; it was watched for {observed.watched:.0f}")
        if any(seconds is None or seconds > within for seconds in silent.values()):
            raise Missing(found)
        return found

    return Expectation(f"alerts fall silent within {within:g} s of the end of the fault", check)
