"""What clients must get: statuses, durations, and the first success after the fault."""

from __future__ import annotations

from collections import Counter

from lab.chaos.expectations import Expectation
from lab.chaos.observations import Observations
from lab.client import Missing
from lab.load.generator import Response
from lab.load.latency import Latencies

PROMPT = 1.0  # seconds
# Seconds: less than the second that a request waits for a connection before it is refused.
REFUSED_AT_ONCE = 0.5


def _statuses(responses: list[Response]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(Counter(r.status for r in responses).items()))  # noqa: RUF001


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
