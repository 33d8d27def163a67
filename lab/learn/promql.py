"""Checks PromQL queries with a real Prometheus, on recorded and on synthetic samples.

One database holds two worlds (see :mod:`lab.learn.queries`), :data:`APART` seconds apart: the run of the attempt,
sampled from ``/metrics``, and a synthetic one. For each check a Prometheus is started (see :mod:`lab.prometheus`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp

from lab import LabError
from lab.learn.exercise import Exercise, Facts, Judge, Verdict
from lab.learn.lesson import Lesson
from lab.learn.queries import alike, compare, with_hint
from lab.prometheus import Prometheus, Series
from lab.queries import Rows

APART = 6 * 3600.0  # seconds between two worlds
INTERVAL = 0.5  # seconds between two samples of the recorded run
COUNTERS = ("_total", "_count", "_sum", "_bucket")


class Recording(Series):
    """Samples of the services' ``/metrics`` during traffic, with the labels that Prometheus would add.

    Attributes:
        start, end: when the first and the last sample were taken, in seconds since 1970.
    """

    def __init__(self) -> None:
        super().__init__()
        self.start = time.time()
        self.end = 0.0

    @asynccontextmanager
    async def of(self, lesson: Lesson) -> AsyncIterator[None]:
        """Sample while the block runs, and also once before and once after it."""
        await self._sample(lesson)
        task = asyncio.ensure_future(self._keep_sampling(lesson))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._sample(lesson)

    def moved(self, seconds: float, chance: random.Random) -> str:
        """The run at another time, as text. Counters start at other values, and a job that always fails is added."""
        other = Series()
        grown: dict[str, float] = {}  # what is added to each counter; the same for all counters of a histogram
        for name, labels, value, at in self.samples:
            more = 0.0
            if name.endswith(COUNTERS):
                more = grown.setdefault(name.rpartition("_")[0], float(chance.randint(100, 10_000)))
            other.add(name, labels, value + more, at + seconds)
        for index, at in enumerate(sorted({at for *_, at in self.samples})):
            labels = {"job": "shop", "instance": "127.0.0.1:2", "handler": "/buy", "method": "GET", "status": "503"}
            other.add("http_requests_total", labels, 3.0 * index, at + seconds)
            other.add("up", {"job": "shop", "instance": "127.0.0.1:2"}, 0.0, at + seconds)
        return other.text()

    async def _keep_sampling(self, lesson: Lesson) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self._sample(lesson)

    async def _sample(self, lesson: Lesson) -> None:
        async def one(service: str, url: str) -> None:
            labels = {"job": service, "instance": url.removeprefix("http://")}
            up = 0.0
            at = time.time()
            with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
                async with asyncio.timeout(4 * INTERVAL):
                    samples = await lesson.lab.fetch_samples(service)
                for sample in samples:
                    if not sample.name.endswith("_created"):
                        self.add(sample.name, {**sample.labels, **labels}, float(sample.value), at)
                up = 1.0
            self.add("up", labels, up, at)
            self.end = max(self.end, at)

        await asyncio.gather(*(one(service, url) for service, url in lesson.lab.services.items()))


def save(lesson: Lesson, number: str, text: str) -> str:
    """Save the samples of an attempt in the directory of the progress; returns the name of the file."""
    path = lesson.directory / f"{number}.samples"
    path.write_text(text + "# EOF\n")
    return path.name


@asynccontextmanager
async def prometheus_on(lesson: Lesson, facts: Facts) -> AsyncIterator[Prometheus]:
    """Run a Prometheus on the samples that :func:`save` has saved, while the block runs.

    Raises:
        LabError: when the file no longer exists.
    """
    samples = lesson.directory / facts["samples"]
    if not await asyncio.to_thread(samples.exists):
        raise LabError(f"{samples} is gone; ask for the exercise again")
    async with Prometheus.on(samples) as engine:
        yield engine


def by_label(label: str) -> Judge:
    """A judge that compares the result of a query, by a label, with the expected one in each world.

    The facts hold ``samples``, the file, and ``worlds``, each with ``name``, ``at``, ``expected`` (value by label) and
    ``tolerance``. A wrong query that has the results of a typical mistake in every world gets the hint for it.
    """

    async def judge(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
        async with prometheus_on(lesson, facts) as engine:

            async def results(query: str) -> list[Rows]:
                return [await engine.rows(query, world["at"], label) for world in facts["worlds"]]

            found = await results(answer)
            verdict = compare(found, facts["worlds"])
            return await with_hint(verdict, exercise, facts, results, lambda other: alike(found, other))

    return judge
