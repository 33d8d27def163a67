"""``dicelab forward``: forwards the ports of a lab in a cluster to this machine, with the usual port numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from lab.kubernetes import pods
from lab.kubernetes.kustomize import PORTS, SERVICE_PORT
from lab.kubernetes.pods import Pods, Workload
from lab.supervise import engines, stages
from lab.terminal import say
from lab.waiting import sleep, stop_signal

PAUSE = 0.5  # seconds before kubectl port-forward is started again after its end


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    base_port: int


def run(options: Options, console: Console) -> int:
    """Run the command until a signal; returns 0.

    Raises:
        LabError: when there is no lab in the cluster.
    """
    asyncio.run(_forward(options, console))
    return 0


def ports(name: str, base_port: int) -> Mapping[int, int]:
    """The ports of a part of the lab: the port on this machine, and the port in the cluster."""
    offsets = {service.name: service.port_offset for service in stages.SERVICES}
    if name in offsets:
        return {base_port + offsets[name]: SERVICE_PORT}
    first = base_port + engines.FIRST_PORT
    known = (engine for engine in engines.ENGINES if engine.name == name)
    return {
        first + engines.PORTS.index(port): PORTS[port] for engine in known for port in engine.ports if port in PORTS
    }


async def _forward(options: Options, console: Console) -> None:
    found: Pods = await pods.find()
    async with stop_signal() as stop, asyncio.TaskGroup() as forwards:
        for name, workload in sorted(found.workloads.items()):
            if pairs := ports(name, options.base_port):
                say(console, f"{name:18} " + ", ".join(f"http://127.0.0.1:{port}" for port in pairs))
                forwards.create_task(_keep(workload, pairs, stop, console))


async def _keep(workload: Workload, pairs: Mapping[int, int], stop: asyncio.Event, console: Console) -> None:
    """Forward the ports of a part until ``stop`` is set. kubectl ends with its pod, and is then started again."""
    arguments = ("port-forward", f"service/{workload.name}", *(f"{here}:{there}" for here, there in pairs.items()))
    said = ""  # kubectl's last words
    while not stop.is_set():
        process = await asyncio.create_subprocess_exec(
            *pods.command(workload.namespace, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        ended, stopped = asyncio.ensure_future(process.communicate()), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if process.returncode is None:
                process.terminate()
        _, errors = await ended
        words = errors.decode(errors="replace").strip().rpartition("\n")[2]
        if words != said and not stop.is_set():
            say(console, f"{workload.name}: {words}" if words else f"{workload.name}: the forward has ended", "yellow")
            said = words
        await sleep(PAUSE, stop)
