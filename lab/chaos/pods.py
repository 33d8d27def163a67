"""How an experiment breaks a lab in a cluster: through kubectl."""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from lab import LabError
from lab.chaos.targets import PSQL, RUN_TIME, CommandTarget, start
from lab.kubernetes.pods import Pods, command
from lab.waiting import within

# Seconds until the autoscalers have left one pod of each service.
SETTLE = 120.0
POLL = 1.0  # seconds
# Pauses all processes of a pod again and again until its standard input is closed: the script must end when the
# connection to the cluster breaks. `kill -1` leaves out the shell itself. SIGSTOP has no effect on the first process of
# a namespace; here that is the pod's sandbox (shareProcessNamespace).
PAUSE_SCRIPT = """
trap 'kill -CONT -1' EXIT
while kill -STOP -1; do
    read -t {pause} _; ended=$?
    kill -CONT -1
    [ $ended -le 128 ] && exit
    read -t {run} _ || [ $? -gt 128 ] || exit
done
"""


class PodTarget(CommandTarget):
    """The lab in the cluster.

    A part is stopped by scaling it to zero, and slowed down by pausing it most of the time. During the experiment the
    autoscalers keep one pod of each service, so that the metrics of a service are those of one process.
    """

    def __init__(self, pods: Pods) -> None:
        super().__init__()
        self._pods = pods
        self._replicas: dict[str, int] = {}  # of each stopped part, before it was stopped
        self._limits: dict[str, tuple[int, int]] = {}  # of the autoscalers
        self._pausers: dict[str, list[asyncio.subprocess.Process]] = {}  # running PAUSE_SCRIPTs

    async def __aenter__(self) -> Self:
        try:
            await self._hold_autoscalers()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:  # calls back in reverse order, each even if another one fails
            for name, limits in self._limits.items():
                stack.push_async_callback(self._limit, name, *limits)
            for name in self._replicas:
                stack.push_async_callback(self.start, name)
            stack.push_async_callback(self.unlock)
            for name in self._pausers:
                stack.push_async_callback(self.slow, name, 0)

    async def _hold_autoscalers(self) -> None:
        for name, workload in self._pods.workloads.items():
            if workload.kind != "deployment":
                continue
            text = await self._pods.run(
                workload.namespace, "get", "horizontalpodautoscaler", name, "--ignore-not-found", "--output", "json"
            )
            if text.strip():
                spec = json.loads(text)["spec"]
                self._limits[name] = spec.get("minReplicas", 1), spec["maxReplicas"]
                await self._limit(name, 1, 1)
        for name in self._limits:
            async for _ in within(SETTLE, POLL):
                if len(await self._pods.of(name)) == 1:
                    break
            else:
                raise LabError(f"the autoscaler of the {name} has not left one pod after {SETTLE:g} s")

    async def _limit(self, name: str, low: int, high: int) -> None:
        patch = json.dumps({"spec": {"minReplicas": low, "maxReplicas": high}})
        namespace = self._pods.workload(name).namespace
        await self._pods.run(namespace, "patch", "horizontalpodautoscaler", name, "--type=merge", "--patch", patch)

    async def stop(self, name: str) -> None:
        workload = self._pods.workload(name)
        path = "jsonpath={.spec.replicas}"
        text = (await self._pods.run(workload.namespace, "get", workload.reference, "--output", path)).strip()
        if not text:
            raise LabError(f"a {workload.kind} such as the {name} cannot be scaled to zero")
        self._replicas.setdefault(name, int(text))
        await self._pods.run(workload.namespace, "scale", workload.reference, "--replicas=0")
        await self.kill(name)  # at once, without the grace period

    async def start(self, name: str) -> None:
        workload = self._pods.workload(name)
        replicas = self._replicas.get(name, 1)
        await self._pods.run(workload.namespace, "scale", workload.reference, f"--replicas={replicas}")
        self._replicas.pop(name, None)

    async def kill(self, name: str) -> None:
        workload = self._pods.workload(name)
        await self._pods.run(
            workload.namespace, "delete", "pods", "--selector", workload.selector, "--grace-period=0", "--force"
        )

    async def freeze(self, name: str) -> None:
        raise LabError(f"the {name} in a cluster cannot be frozen: its image has no program that stops a process")

    async def thaw(self, name: str) -> None:
        """Nothing was frozen."""

    async def fill(self, name: str) -> None:
        raise LabError("the volume of a pod is not filled: it may be the node's; use a lab of dicelab up")

    async def empty(self, name: str) -> None:
        """Nothing was filled."""

    async def slow(self, name: str, seconds: float) -> None:
        for process in self._pausers.pop(name, []):
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        if seconds:
            workload = self._pods.workload(name)
            script = PAUSE_SCRIPT.format(pause=seconds, run=RUN_TIME)
            for pod in await self._pods.of(name):
                arguments = ("exec", "--stdin", pod["metadata"]["name"], "--", "bash", "-c", script)
                process = await start(command(workload.namespace, *arguments), asyncio.subprocess.PIPE)
                self._pausers.setdefault(name, []).append(process)

    def psql(self, query: str) -> list[str]:
        workload = self._pods.workload("postgres")
        return command(workload.namespace, "exec", workload.reference, "--", *PSQL, query)

    async def processes(self) -> dict[str, int | None]:
        """Instead of a process id: a number that changes when the oldest pod of a part is replaced or restarted."""
        found: dict[str, int | None] = {}
        for name in self._pods.workloads:
            pods = await self._pods.of(name)
            found[name] = None
            if pods:
                restarts = [one["restartCount"] for one in pods[0]["status"].get("containerStatuses", [])]
                found[name] = zlib.crc32(f"{pods[0]['metadata']['uid']} {restarts}".encode())
        return found
