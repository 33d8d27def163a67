"""PromQL on samples that are not those of the lab's Prometheus: a temporary Prometheus is started for them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError, error_text
from lab.queries import Rows, refused, rows_of
from lab.signals import escape_label
from lab.supervise.processes import Process, free_port
from lab.supervise.readiness import wait_until_ready


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
            pairs = ",".join(f'{key}="{escape_label(text)}"' for key, text in sorted(labels.items()))
            lines.append(f"{name}{{{pairs}}} {value!r} {at:.3f}\n")
        return "".join(lines)


class Prometheus:
    """A Prometheus that answers queries on given samples, and scrapes nothing."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @classmethod
    @asynccontextmanager
    async def on(cls, samples: Path) -> AsyncIterator[Prometheus]:
        """Run a Prometheus on a loopback port while the block runs.

        Args:
            samples: a file in the OpenMetrics format.

        Raises:
            LabError: when it is not on PATH, the samples do not exist, or it does not start.
        """
        prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
        if prometheus is None or promtool is None:
            raise LabError("this needs prometheus and promtool on PATH: Debian's package prometheus")
        if not await asyncio.to_thread(samples.exists):
            raise LabError(f"{samples} does not exist")
        directory = Path(tempfile.mkdtemp(prefix="dicelab-prometheus-"))
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
                await wait_until_ready(session, f"http://127.0.0.1:{port}/-/ready", process)
                yield cls(session, f"http://127.0.0.1:{port}")
        finally:
            if process is not None:
                process.kill()
                await process.ended()
            shutil.rmtree(directory, ignore_errors=True)

    async def rows(self, query: str, at: float, label: str = "") -> Rows:
        """The result of an instant query by the values of a label; NaN is left out.

        Raises:
            InputError: when Prometheus refuses the query, with its own message.
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
            raise LabError(f"prometheus went away: {error_text(error)}") from None
        if document.get("status") != "success":
            raise refused("Prometheus", str(document.get("error", "")))
        data: dict[str, Any] = document["data"]
        return data


async def _command(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"{Path(command[0]).name}: {' '.join(output.decode(errors='replace').split())[-300:]}")
