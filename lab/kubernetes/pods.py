"""The pods of a lab in a cluster, through kubectl and its current context."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab import LabError
from lab.containers import output
from lab.kubernetes.kustomize import NAME_LABEL, NAMESPACE, NODES_NAMESPACE

SAMPLER = "sampler-collector"  # the Collectors with tail sampling, which only the large engines have
KINDS = "deployments,statefulsets,daemonsets"


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or DaemonSet; ``kind`` is the name of its type in lower case, as kubectl takes it."""

    kind: str
    name: str
    namespace: str

    @property
    def reference(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def selector(self) -> str:
        return f"{NAME_LABEL}={self.name}"


@dataclass(frozen=True)
class Pods:
    """The pods of a lab.

    Attributes:
        workloads: the workload of each part of the lab, by its name.
    """

    workloads: Mapping[str, Workload]

    @property
    def sampling(self) -> str:
        """How the Collector samples traces: ``tail``, or ``none`` where it keeps all."""
        return "tail" if SAMPLER in self.workloads else "none"

    def workload(self, name: str) -> Workload:
        """The workload of a part of the lab.

        Raises:
            LabError: when the cluster has no such part.
        """
        if name not in self.workloads:
            raise LabError(f"the cluster has no {name}")
        return self.workloads[name]

    async def run(self, namespace: str, *arguments: str) -> str:
        """Run a command of kubectl and return what it prints.

        Raises:
            LabError: when the command fails.
        """
        return await output(command(namespace, *arguments))

    async def of(self, name: str) -> list[dict[str, Any]]:
        """The pods of a part, without those that are being deleted, oldest first; as the API returns them."""
        workload = self.workload(name)
        text = await self.run(workload.namespace, "get", "pods", "--selector", workload.selector, "--output", "json")
        there = [pod for pod in json.loads(text)["items"] if "deletionTimestamp" not in pod["metadata"]]
        return sorted(there, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def log_lines(self, name: str) -> list[str]:
        """The complete lines that the pods of a part have written, as far as their nodes have kept them."""
        workload = self.workload(name)
        arguments = ("logs", "--selector", workload.selector, "--tail=-1", "--ignore-errors")
        logs = subprocess.run(
            command(workload.namespace, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return logs.stdout.decode(errors="replace").split("\n")[:-1]


def command(namespace: str, *arguments: str) -> list[str]:
    """A command line of kubectl."""
    return ["kubectl", "--namespace", namespace, *arguments]


async def find() -> Pods:
    """Find the lab in the cluster of kubectl's current context.

    Raises:
        LabError: when there is none, or kubectl is missing or fails.
    """
    if shutil.which("kubectl") is None:
        raise LabError("kubectl is not on PATH")
    found = {}
    for namespace in (NAMESPACE, NODES_NAMESPACE):
        for document in json.loads(await output(command(namespace, "get", KINDS, "--output", "json")))["items"]:
            name = document["metadata"]["name"]
            found[name] = Workload(document["kind"].lower(), name, namespace)
    if not found:
        raise LabError(f"the namespace {NAMESPACE} is empty; make kubernetes APPLY=1 starts a lab in it")
    return Pods(found)
