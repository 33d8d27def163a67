"""Several processes of one service behind one port, and metrics that are those of all of them, whoever is asked.

Each worker listens on the port (the kernel deals out the connections) and on a socket of its own in a directory they
share. There it tells its siblings what it has counted, after it has written the same to a file beside the socket:
whoever is asked for ``/metrics`` asks all, and takes from the file what a worker that is gone, or too busy to answer,
has last told. So no counter that was ever shown goes backwards, and one that ends in an orderly way loses nothing; of
one that is killed, what it counted since it was last asked is lost. Exemplars survive, which is more than
prometheus_client's own multi-process mode can say; it would also cost each count a write to a file.
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
ANSWER_TIMEOUT = 1.0  # seconds that a sibling has to say what it counted
# Of these gauges the highest is shown, of all others the sum.
NOT_SUMMED = frozenset(
    {
        "die_specifications_loaded",
        "dicelab_traffic_expected",
        "process_start_time_seconds",
        "process_max_fds",
        "python_info",
    }
)

# A sample: its name, labels, value, and where there is one its exemplar (labels, value, time).
Told = list[dict[str, Any]]


class Workers:
    """This process among those of its service.

    Args:
        directory: what the workers share; of one run only.
        service: whose workers these are.
        registry: what this process counts in.
    """

    def __init__(self, directory: Path, service: str, registry: CollectorRegistry) -> None:
        self._directory = directory
        self._service = service
        self._registry = registry
        self._socket = directory / f"{service}-{uuid.uuid4().hex[:12]}.sock"
        self._file = self._socket.with_suffix(".json")
        self._telling = asyncio.Lock()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """A cleanup context: listen to siblings, and leave word in the end."""
        await self.tell()
        server = await asyncio.start_unix_server(self._answer, self._socket)
        announcing = asyncio.create_task(self._announce(app))
        yield
        announcing.cancel()
        server.close()
        await self.tell()
        self._socket.unlink(missing_ok=True)

    async def _announce(self, app: web.Application) -> None:
        """Leave a file once this worker can serve: who asks the port does not know which worker answers."""
        while await app[health.READINESS]() is not None:
            await asyncio.sleep(READY_POLL)
        self._socket.with_suffix(".ready").touch()

    async def tell(self) -> bytes:
        """What this process has counted, written down before anybody is told."""
        async with self._telling:  # or an older word might replace a newer one
            told = orjson.dumps([_family(family) for family in self._registry.collect()])
            await asyncio.to_thread(self._keep, told)
        return told

    def _keep(self, told: bytes) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_bytes(told)
        temporary.replace(self._file)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await self.tell())
        writer.close()

    async def gathered(self) -> CollectorRegistry:
        """A registry of what all workers have counted, those that are gone too."""
        files = {path.with_suffix(".json") for path in self._directory.glob(f"{self._service}-*.*")}
        told = await asyncio.gather(*(self._ask(file) for file in sorted(files - {self._file})))
        registry = CollectorRegistry()
        registry.register(_Sum([(True, orjson.loads(await self.tell())), *told]))
        return registry

    async def _ask(self, file: Path) -> tuple[bool, Told]:
        """Whether the sibling that writes this file is alive, and what it has counted."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(file.with_suffix(".sock"))
                content = await reader.read()
                writer.close()
            return True, orjson.loads(content)
        except (FileNotFoundError, ConnectionRefusedError):  # it has ended, or was killed
            return False, _read(file)
        except (OSError, asyncio.TimeoutError, orjson.JSONDecodeError):  # too busy, or just about to end
            return True, _read(file)


def _family(family: Metric) -> dict[str, Any]:
    samples = []
    for sample in family.samples:
        seen = sample.exemplar
        exemplar = [seen.labels, seen.value, seen.timestamp] if seen else None
        samples.append([sample.name, sample.labels, sample.value, exemplar])
    return {"name": family.name, "documentation": family.documentation, "type": family.type, "samples": samples}


def _read(file: Path) -> Told:
    try:
        told: Told = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # it has never said anything
        return []
    return told


class _Sum(Collector):
    """The families of several processes as those of one."""

    def __init__(self, workers: Iterable[tuple[bool, Told]]) -> None:
        self._workers = list(workers)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]]] = {}
        for alive, told in self._workers:
            for family in told:
                name, kind = family["name"], family["type"]
                families.setdefault(name, Metric(name, family["documentation"], kind))
                samples = sums.setdefault(name, {})
                if not alive and kind not in ("counter", "histogram"):
                    continue  # a gauge of what is no more
                for sample, labels, value, exemplar in family["samples"]:
                    entry = samples.setdefault((sample, tuple(labels.items())), [0.0, None])
                    entry[0] = max(entry[0], value) if name in NOT_SUMMED else entry[0] + value
                    if exemplar and (entry[1] is None or exemplar[2] > entry[1][2]):
                        entry[1] = exemplar
        for name, whole in families.items():
            for (sample, labels), (value, exemplar) in sums[name].items():
                whole.add_sample(sample, dict(labels), value, None, Exemplar(*exemplar) if exemplar else None)
            yield whole
