"""Several processes of one service behind one port, and metrics that are the sum over all of them.

Every worker listens on the port (the kernel distributes the connections) and on a Unix socket in a directory that the
workers share. The worker that is asked for ``/metrics`` asks every other one over its socket for a snapshot of its
metrics. Each worker also writes each snapshot to a file beside its socket before it sends it; the file is read when the
worker has ended or does not respond in time.

Therefore counters never decrease, and a clean exit loses nothing. A killed worker loses what it counted since its last
snapshot. Exemplars are kept, which prometheus_client's own multi-process mode does not do; that mode would also write
to a file with every count.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from web import health

READY_POLL = 0.05
SNAPSHOT_TIMEOUT = 1.0  # seconds that another worker has to send its snapshot
# These gauges are the maximum over the workers; all others are the sum.
NOT_SUMMED = frozenset(
    {
        "die_specifications_loaded",
        "dicelab_traffic_expected",
        "process_start_time_seconds",
        "process_max_fds",
        "python_info",
    }
)

# The metric families of a process. A sample is its name, labels, value and exemplar (labels, value, time) or None.
Snapshot = list[dict[str, Any]]


class Workers:
    """This worker, and access to the metrics of the others.

    Args:
        directory: shared by the workers of one run; no other run may use it.
        service: the name of the service.
        registry: holds the metrics of this process.
    """

    def __init__(self, directory: Path, service: str, registry: CollectorRegistry) -> None:
        self._directory = directory
        self._service = service
        self._registry = registry
        self._socket = directory / f"{service}-{uuid.uuid4().hex[:12]}.sock"
        self._file = self._socket.with_suffix(".json")
        self._one_at_a_time = asyncio.Lock()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """A cleanup context: respond to other workers, and write the last snapshot at the end."""
        await self.snapshot()
        server = await asyncio.start_unix_server(self._respond, self._socket)
        announcing = asyncio.create_task(self._announce(app))
        yield
        announcing.cancel()
        server.close()
        await self.snapshot()
        self._socket.unlink(missing_ok=True)

    async def _announce(self, app: web.Application) -> None:
        """Create a file once this worker is ready; a request to the shared port cannot choose a worker."""
        while await app[health.READINESS]() is not None:
            await asyncio.sleep(READY_POLL)
        self._socket.with_suffix(".ready").touch()

    async def snapshot(self) -> bytes:
        """The metrics of this process, as JSON; written to the file before they are returned."""
        async with self._one_at_a_time:  # otherwise an older snapshot could replace a newer one
            content = orjson.dumps([_family(family) for family in self._registry.collect()])
            await asyncio.to_thread(self._write, content)
        return content

    def _write(self, content: bytes) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(self._file)

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await self.snapshot())
        writer.close()

    async def collect_all(self) -> CollectorRegistry:
        """A registry with the metrics of all workers, including those that have ended."""
        files = {path.with_suffix(".json") for path in self._directory.glob(f"{self._service}-*.*")}
        others = await asyncio.gather(*(self._ask(file) for file in sorted(files - {self._file})))
        registry = CollectorRegistry()
        registry.register(_Sum([(True, orjson.loads(await self.snapshot())), *others]))
        return registry

    async def _ask(self, file: Path) -> tuple[bool, Snapshot]:
        """Whether the worker that writes this file is alive, and its last snapshot."""
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(file.with_suffix(".sock"))
                content = await reader.read()
                writer.close()
            return True, orjson.loads(content)
        except (FileNotFoundError, ConnectionRefusedError):  # it has ended or was killed
            return False, _read(file)
        except (OSError, asyncio.TimeoutError, orjson.JSONDecodeError):  # it is too busy, or is just ending
            return True, _read(file)


def _family(family: Metric) -> dict[str, Any]:
    samples = []
    for sample in family.samples:
        seen = sample.exemplar
        exemplar = [seen.labels, seen.value, seen.timestamp] if seen else None
        samples.append([sample.name, sample.labels, sample.value, exemplar])
    return {"name": family.name, "documentation": family.documentation, "type": family.type, "samples": samples}


def _read(file: Path) -> Snapshot:
    try:
        snapshot: Snapshot = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # it has never written a snapshot
        return []
    return snapshot


class _Sum(Collector):
    """The sum of the snapshots of several processes."""

    def __init__(self, workers: Iterable[tuple[bool, Snapshot]]) -> None:
        self._workers = list(workers)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]]] = {}
        for alive, snapshot in self._workers:
            for family in snapshot:
                name, kind = family["name"], family["type"]
                families.setdefault(name, Metric(name, family["documentation"], kind))
                samples = sums.setdefault(name, {})
                if not alive and kind not in ("counter", "histogram"):
                    continue  # a gauge describes the present, and this process has ended
                for sample, labels, value, exemplar in family["samples"]:
                    entry = samples.setdefault((sample, tuple(labels.items())), [0.0, None])
                    entry[0] = max(entry[0], value) if name in NOT_SUMMED else entry[0] + value
                    if exemplar and (entry[1] is None or exemplar[2] > entry[1][2]):
                        entry[1] = exemplar
        for name, whole in families.items():
            for (sample, labels), (value, exemplar) in sums[name].items():
                whole.add_sample(sample, dict(labels), value, None, Exemplar(*exemplar) if exemplar else None)
            yield whole
