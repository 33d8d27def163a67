"""Figures from Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from frontend.explorer.model import SourceError
from frontend.explorer.sources.engines import Engine
from frontend.explorer.sources.figures import (
    ENOUGH,
    LATENCY_LIMIT,
    OWN_ROLLS,
    PERCENTILES,
    STATIC,
    Buckets,
    Figures,
    faces_of,
    objectives,
)

RANGE = 24 * 3600  # seconds that are queried if the time range has no limit
STEP = 5  # seconds between two points, more if there are more than POINTS
POINTS = 150
RATE = 30  # seconds that a rate covers
LATENCY_RATE = 60  # seconds that a latency covers
DAYS = 30  # the period of the objectives

_OWN = "|".join((STATIC, *OWN_ROLLS)).replace("{", "\\\\{").replace("}", "\\\\}")


def _requests(seconds: int, status: str = "") -> str:
    """A query for requests a second; those of the frontend include the rolls of the page."""
    http, page = (f',status=~"{status}"', f'{{status_code=~"{status}"}}') if status else ("", "")
    return (
        f'sum by (job) (rate(http_requests_total{{job!="frontend"{http}}}[{seconds}s])'
        f' or rate(http_requests_total{{job="frontend",handler!~"{_OWN}"{http}}}[{seconds}s])'
        f" or rate(streamlit_requests_total{page}[{seconds}s]))"
    )


def _durations(part: str, by: str, seconds: int = LATENCY_RATE) -> str:
    """A query for a part of the latency histograms: of rolls at the frontend, of all requests elsewhere."""
    return (
        f'sum by ({by}) (rate(http_request_duration_seconds_{part}{{job!="frontend"}}[{seconds}s])'
        f" or rate(streamlit_request_duration_seconds_{part}[{seconds}s]))"
    )


RATE_QUERY = _requests(RATE)
ERROR_QUERY = _requests(RATE, "5..")
MEAN_QUERY = f"{_durations('sum', 'job')} / {_durations('count', 'job')}"


def latency_query(percentile: float) -> str:
    """A query for a latency percentile of the services with enough requests."""
    enough = f"({_durations('count', 'job')} * {LATENCY_RATE} >= {ENOUGH})"
    return f"histogram_quantile({percentile}, {_durations('bucket', 'job, le')}) and on (job) {enough}"


class Prometheus(Engine):
    """Figures from Prometheus."""

    name = "Prometheus"

    async def figures(self, since: int, until: int) -> Figures:
        end = until / 1e9 or time.time()
        start = since / 1e9 or end - RANGE
        step = max(STEP, math.ceil((end - start) / POINTS / STEP) * STEP)
        first, last = math.floor(start / step) * step, math.floor(end / step) * step
        grid = list(range(first, last + step, step))
        queries = [RATE_QUERY, ERROR_QUERY, MEAN_QUERY, *map(latency_query, PERCENTILES)]
        queries += [
            "sum(async_rolls_in_progress)",
            "sum(database_connection_pool_size)",
            "sum(database_connection_pool_size) - sum(database_connection_pool_available)",
        ]
        ranges = await asyncio.gather(*(self._range(query, grid, step) for query in queries))
        faces = await self._instant("sum by (die_type, le) (dice_roll_value_bucket)")
        rolls = await self._instant("sum by (die_type, result) (dice_rolls_total)")
        rate, errors, mean, *latencies = (
            {metric.get("job", ""): values for metric, values in found} for found in ranges[: 3 + len(PERCENTILES)]
        )
        in_progress, pool_size, pool_used = (found[0][1] if found else [math.nan] * len(grid) for found in ranges[-3:])
        buckets: dict[str, Buckets] = defaultdict(dict)
        for metric, value in faces:
            buckets[metric["die_type"]][float(metric["le"])] = value
        outcomes: dict[str, dict[str, float]] = defaultdict(dict)
        for metric, value in rolls:
            outcomes[metric["die_type"]][metric["result"]] = value
        served = await self._instant(f'sum by (outcome) (increase(roll_requests_total{{job="frontend"}}[{DAYS}d]))')
        timed = await self._instant(f"sum(increase(streamlit_request_duration_seconds_count[{DAYS}d]))")
        in_time = await self._instant(
            f'sum(increase(streamlit_request_duration_seconds_bucket{{le="{LATENCY_LIMIT}"}}[{DAYS}d]))'
        )
        return Figures(
            times=[float(at) for at in grid],
            rate=rate,
            errors={job: errors.get(job) or [0.0 if value >= 0 else value for value in rate[job]] for job in rate},
            latency=dict(zip(PERCENTILES, latencies, strict=True)),
            mean=mean,
            in_progress=in_progress,
            pool_size=pool_size,
            pool_used=pool_used,
            faces={die: faces_of(found) for die, found in buckets.items()},
            rolls={die: (found.get("success", 0.0), found.get("error", 0.0)) for die, found in outcomes.items()},
            objectives=objectives(
                {metric["outcome"]: value for metric, value in served},
                sum(value for _, value in timed),
                sum(value for _, value in in_time),
            ),
            rates_over=f"{RATE} s",
            latency_over=f"{LATENCY_RATE} s",
            objectives_over=f"over {DAYS} days",
            every=STEP,
        )

    async def _range(self, query: str, grid: Sequence[int], step: int) -> list[tuple[dict[str, str], list[float]]]:
        result = await self._result(
            "query_range", {"query": query, "start": str(grid[0]), "end": str(grid[-1]), "step": str(step)}
        )
        found = []
        for row in result:
            known = {int(at): float(value) for at, value in row["values"]}
            found.append((row["metric"], [known.get(at, math.nan) for at in grid]))
        return found

    async def _instant(self, query: str) -> list[tuple[dict[str, str], float]]:
        return [(row["metric"], float(row["value"][1])) for row in await self._result("query", {"query": query})]

    async def _result(self, path: str, query: Mapping[str, str]) -> list[Any]:
        response = await self.get(f"api/v1/{path}", query)
        try:
            result: list[Any] = response["data"]["result"]
        except (KeyError, TypeError) as error:
            raise SourceError("Prometheus sent an invalid response.") from error
        return result
