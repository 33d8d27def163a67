"""What services must show of themselves: metrics, readiness, memory, processes."""

from __future__ import annotations

import time
from itertools import pairwise

from lab.chaos.expectations import Expectation, selector
from lab.chaos.observations import Observations, snapshot
from lab.client import DIE_SERVICE, Missing

# Memory has recovered if it is at most this factor and this many bytes above its value before the fault.
MEMORY_FACTOR = 1.25
MEMORY_SLACK = 24 * 1024 * 1024
POOL_SIZE, POOL_AVAILABLE = "database_connection_pool_size", "database_connection_pool_available"
MEMORY = "process_resident_memory_bytes"


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
        series = selector(name, {"job": service, **labels})
        seconds = int(time.monotonic() - observed.injected) + 10
        where = await _in_prometheus(observed, f"max_over_time({series}[{seconds}s]) > {before}")
        return f"by {after - before:g}{where}"

    return Expectation(f"{selector(name, labels)} of the {service} grows", check)


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
