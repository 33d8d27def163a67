"""A cross-check: compares our figures with those that Prometheus, Loki and Tempo counted for the same telemetry."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.client import TENANTS, Lab, Missing
from lab.cost.collect import SPANS_RECEIVED, Collector, counters, loki_bytes
from lab.cost.measure import Observed
from lab.cost.otlp import size
from lab.waiting import within

COUNT_TIMEOUT = 20.0  # seconds for an engine to count what was sent
Counts = defaultdict[str, float]  # the values of an engine's counters, by name
LINES_RECEIVED, BYTES_RECEIVED = "loki_distributor_lines_received_total", "loki_distributor_bytes_received_total"
SPAN_BYTES_RECEIVED = "tempo_distributor_bytes_received_total"
COUNTERS = {"loki": (LINES_RECEIVED, BYTES_RECEIVED), "tempo": (SPANS_RECEIVED, SPAN_BYTES_RECEIVED)}
# Seconds. Loki fills a chunk for up to 2 h, and queries its ingesters for the last 3 h only: in between.
LOOK_BACK = 2.5 * 3600
AHEAD = 2.0  # seconds: Loki truncates the end of the range to a whole second
ADDED = re.compile(r"up|scrape_.*|ALERTS.*|.*:.*")  # series that Prometheus adds itself: of scrapes and of rules


@dataclass(frozen=True)
class Agreement:
    """One figure as we computed it, and as an engine counted it."""

    what: str
    ours: float
    engine: str
    theirs: float

    @property
    def percent(self) -> float:
        """Theirs as a percentage of ours."""
        return 100 * self.theirs / self.ours if self.ours else 100.0 if not self.theirs else 0.0


class Engines:
    """The engines' counters before the requests; :meth:`read` compares their growth with our figures."""

    def __init__(self, lab: Lab, before: Mapping[str, Counts], since: float, volume: float) -> None:
        self._lab = lab
        self._before = before
        self._since = since
        self._volume_before = volume

    @classmethod
    async def before(cls, lab: Lab) -> Engines:
        counted = {name: await _counted(lab, name) for name in COUNTERS if name in lab.engines}
        since = time.time() - LOOK_BACK
        return cls(lab, counted, since, await _volume(lab, since) if "loki" in lab.engines else 0.0)

    async def read(self, observed: Observed, collector: Collector) -> list[Agreement]:
        """Compare with each engine that runs."""
        found: list[Agreement] = []
        if "prometheus" in self._lab.engines:
            found += await self._prometheus(observed)
        if {"loki", "alloy"} <= self._lab.engines.keys():
            found += await self._loki(collector)
        if "tempo" in self._lab.engines and not self._lab.sampling:
            found += await self._tempo(observed)
        return found

    async def _prometheus(self, observed: Observed) -> list[Agreement]:
        ours: Counter[str] = Counter(series.name for series in observed.series())
        jobs = "|".join(observed.pages)
        theirs: dict[str, float] = {}
        async for _ in within(COUNT_TIMEOUT, poll=1.0):  # until the scrape after the last request
            try:
                rows = await self._lab.fetch_prometheus(f'count by (__name__) ({{job=~"{jobs}"}})')
            except Missing:
                continue
            named = {row["metric"]["__name__"]: float(row["value"][1]) for row in rows}
            theirs = {name: count for name, count in named.items() if not ADDED.fullmatch(name)}
            if sum(theirs.values()) >= ours.total():
                break
        found = [Agreement("series of the services", ours.total(), "Prometheus, count()", sum(theirs.values()))]
        status = (await self._lab.fetch(f"{self._lab.engine('prometheus')}/api/v1/status/tsdb")).json["data"]
        largest = {row["name"]: float(row["value"]) for row in status["seriesCountByMetricName"] if row["name"] in ours}
        if largest:
            sum_of_ours = float(sum(ours[name] for name in largest))
            words = f"series of {', '.join(sorted(largest))}"
            found.append(Agreement(words, sum_of_ours, "Prometheus, status/tsdb", sum(largest.values())))
        return found

    async def _loki(self, collector: Collector) -> list[Agreement]:
        async def received() -> Counts:
            return _difference(await _counted(self._lab, "loki"), self._before["loki"])

        async for _ in within(COUNT_TIMEOUT, poll=0.5):
            ours = loki_bytes(collector.all_lines())
            counted = await received()
            if counted[LINES_RECEIVED] >= ours.lines:
                break
        volume = await _volume(self._lab, self._since) - self._volume_before
        return [
            Agreement("lines, all of the lab", ours.lines, "Loki, distributor", counted[LINES_RECEIVED]),
            Agreement("bytes of lines", ours.received, "Loki, distributor", counted[BYTES_RECEIVED]),
            Agreement("bytes of lines in chunks", ours.in_chunks, "Loki, volume API", volume),
        ]

    async def _tempo(self, observed: Observed) -> list[Agreement]:
        counted = _difference(await _counted(self._lab, "tempo"), self._before["tempo"])
        return [
            Agreement("spans", len(observed.spans), "Tempo, distributor", counted[SPANS_RECEIVED]),
            Agreement(
                "bytes of spans as OTLP", size(observed.spans).raw, "Tempo, distributor", counted[SPAN_BYTES_RECEIVED]
            ),
        ]


async def _counted(lab: Lab, engine: str) -> Counts:
    return await counters(lab.session, f"{lab.engine(engine)}/metrics", COUNTERS[engine])


async def _volume(lab: Lab, since: float) -> float:
    """The bytes of all streams in Loki's chunks, by its volume API; 0 while that has no data.

    Where a chunk lies partly in the time range, Loki counts a share of its bytes, as if they were spread evenly over
    the chunk's time. So the range has to cover whole chunks; the growth is the difference of two calls.
    """
    total = 0.0
    for tenant in TENANTS:
        response = await lab.fetch(
            f"{lab.engine('loki')}/loki/api/v1/index/volume",
            {
                "query": '{service_name=~".+"}',
                "start": str(int(since * 1e9)),
                "end": str(int((time.time() + AHEAD) * 1e9)),
            },
            **{"X-Scope-OrgID": tenant},
        )
        if response.status == 200:
            total += _sum(response.json["data"]["result"])
    return total


def _difference(after: Counts, before: Counts) -> Counts:
    return defaultdict(float, {name: value - before[name] for name, value in after.items()})


def _sum(rows: Iterable[Mapping[str, Any]]) -> float:
    return sum(float(row["value"][1]) for row in rows)
