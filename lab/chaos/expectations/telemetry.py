"""What must be in log lines and traces, and what may be lost of lines, traces and counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import datetime
from typing import Any

from lab.chaos.expectations import Expectation, selector
from lab.chaos.observations import Observations, snapshot
from lab.client import Missing, NotRunning
from lab.load.generator import Response
from lab.signals import Span, parse_line
from lab.waiting import gather

CONCURRENT_FETCHES = 4  # of traces
SAMPLE = 200  # traces from the middle of a fault that are fetched


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
        series = selector(name, {"job": service, **labels})
        said = (await snapshot(observed.lab, service)).value(name, **labels)
        rows = await observed.lab.fetch_prometheus(f"sum({series}) == {said}")
        seconds = int(observed.fault)
        gap = await observed.lab.fetch_prometheus(f'scalar(count_over_time(up{{job="{service}"}}[{seconds + 20}s]))')
        return f"{float(rows[0]['value'][1]):g}, from {float(gap[1]):g} scrapes in {seconds + 20} s"

    return Expectation(f"afterwards {name} is in Prometheus what the {service} says", check)
