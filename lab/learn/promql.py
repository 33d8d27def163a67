"""Checks PromQL queries with a real Prometheus, on recorded and on synthetic samples.

One database holds two worlds (see :mod:`lab.learn.queries`), :data:`APART` seconds apart: the run of the attempt,
sampled from ``/metrics``, and a synthetic one. For each check a Prometheus is started on a loopback port, with nothing
to scrape.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError
from lab.learn.exercise import Exercise, Facts, Judge, Verdict
from lab.learn.lesson import Lesson
from lab.learn.queries import Rows, alike, compare, refused, rows_of, with_hint
from lab.supervise.processes import Process
from lab.waiting import within

APART = 6 * 3600.0  # seconds between two worlds
INTERVAL = 0.5  # seconds between two samples of the recorded run
START_TIMEOUT = 30.0
COUNTERS = ("_total", "_count", "_sum", "_bucket")


class Series:
    """Samples, written in the OpenMetrics format."""

    def __init__(self) -> None:
        self.samples: list[tuple[str, dict[str, str], float, float]] = []

    def add(self, name: str, labels: Mapping[str, str], value: float, at: float) -> None:
        """Add a sample. The samples of a series must be added in the order of ``at``, in seconds since 1970."""
        self.samples.append((name, dict(labels), float(value), at))

    def text(self) -> str:
        lines = []
        for name, labels, value, at in self.samples:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in sorted(labels.items()))
            lines.append(f"{name}{{{pairs}}} {value!r} {at:.3f}\n")
        return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


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


class Prometheus:
    """A Prometheus that answers queries on the samples of one attempt."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @classmethod
    @asynccontextmanager
    async def on(cls, samples: Path) -> AsyncIterator[Prometheus]:
        """Run a Prometheus while the block runs.

        Raises:
            LabError: when it is not on PATH, the samples do not exist, or it does not start.
        """
        prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
        if prometheus is None or promtool is None:
            raise LabError("this needs prometheus and promtool on PATH: Debian's package prometheus")
        if not await asyncio.to_thread(samples.exists):
            raise LabError(f"{samples} is gone; ask for the exercise again")
        directory = Path(tempfile.mkdtemp(prefix="dicelab-learn-"))
        process: Process | None = None
        try:
            await _command(promtool, "tsdb", "create-blocks-from", "openmetrics", str(samples), str(directory / "data"))
            (directory / "prometheus.yml").write_text("{}\n")
            port = free_port()
            process = await Process.start(
                "prometheus",
                [
                    prometheus,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--storage.tsdb.retention.time=100y",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=error",
                ],
                {},
                directory / "log",
                directory / "log",
                lambda name, lines: None,
            )
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
                await ready(session, f"http://127.0.0.1:{port}/-/ready", "prometheus", process)
                yield cls(session, f"http://127.0.0.1:{port}")
        finally:
            if process is not None:
                process.kill()
                await process.ended()
            shutil.rmtree(directory, ignore_errors=True)

    async def rows(self, query: str, at: float, label: str = "") -> Rows:
        """The result of an instant query by the values of a label; NaN is left out.

        Raises:
            BadAnswer: when Prometheus refuses the query, with its own message.
        """
        document = await self._ask("query", {"query": query, "time": f"{at:.3f}"})
        return rows_of(document, label)

    async def times(self, query: str, start: float, end: float, step: float) -> set[int]:
        """The steps, from 0, at which a query has a result."""
        document = await self._ask(
            "query_range", {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": str(step)}
        )
        return {round((float(at) - start) / step) for series in document["result"] for at, _ in series["values"]}

    async def _ask(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        try:
            async with self._session.post(f"{self._url}/api/v1/{path}", data=parameters) as response:
                document = await response.json()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise LabError(f"prometheus went away: {error or type(error).__name__}") from None
        if document.get("status") != "success":
            raise refused("Prometheus", str(document.get("error", "")))
        data: dict[str, Any] = document["data"]
        return data


async def ready(session: aiohttp.ClientSession, url: str, name: str, process: Process) -> None:
    """Wait until an engine answers 200.

    Raises:
        LabError: when it does not answer in time, or has ended.
    """
    async for _ in within(START_TIMEOUT):
        with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            async with session.get(url) as response:
                if response.status == 200:
                    return
        if not process.running:
            break
    said = " ".join(process.last_lines()[-1:])[:300]
    raise LabError(f"{name} does not start: {said or 'it does not answer'}")


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _command(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"{Path(command[0]).name}: {' '.join(output.decode(errors='replace').split())[-300:]}")


def by_label(label: str) -> Judge:
    """A judge that compares the result of a query, by a label, with the expected one in each world.

    The facts hold ``samples``, the file, and ``worlds``, each with ``name``, ``at``, ``expected`` (value by label) and
    ``tolerance``. A wrong query that has the results of a typical mistake in every world gets the hint for it.
    """

    async def judge(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
        async with Prometheus.on(lesson.directory / facts["samples"]) as engine:

            async def results(query: str) -> list[Rows]:
                return [await engine.rows(query, world["at"], label) for world in facts["worlds"]]

            found = await results(answer)
            verdict = compare(found, facts["worlds"])
            return await with_hint(verdict, exercise, facts, results, lambda other: alike(found, other))

    return judge
