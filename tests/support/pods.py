"""The pods of a stage, run by ``podman kube play``: the part of a cluster that can run without one.

Podman runs pods, but it has no projected configuration, no services, and no HTTP probes from outside. This module does
that part of a node and a cluster: files of ConfigMaps, variables, addresses by aliases in a network, the layout of log
files, and the probes.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.kubernetes import forward
from lab.paths import COMPOSE, ROOT
from tests.support import containers, images
from tests.support.containers import PREFIX, Unavailable, require
from tests.support.kubernetes import SECRET, Document, Manifests, Workload, load
from tests.support.labs import free_base_port, get, wait_for

NETWORK = "dicelab"
IMAGE = f"{PREFIX}/dicelab"
PODMAN = ["podman", "--runtime", "runc"]
SECRETS = {key: f"{key.lower()}-of-the-tests-and-long-enough" for key in SECRET}


@dataclass
class Node:
    """A machine with podman.

    Attributes:
        names: the local image for each image in the manifests.
        left_out: the parts without a local image, and the reason.
    """

    directory: Path
    environment: dict[str, str]
    names: dict[str, str]
    left_out: dict[str, str]
    base_port: int = field(default_factory=free_base_port)

    def podman(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*PODMAN, *arguments], check=False, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stderr}"
        return done.stdout

    @contextmanager
    def stage(self, number: int) -> Iterator[StagePods]:
        """The pods of a stage with the small engines, started together."""
        pods = StagePods(self, number, load(f"small/{number}"))
        self.podman("network", "create", NETWORK)
        try:
            for workload in pods.workloads:
                pods.start(workload)
            yield pods
        finally:
            self.podman("pod", "rm", "--all", "--force", "--time=20", check=False)
            self.podman("volume", "rm", "--all", "--force", check=False)
            self.podman("network", "rm", "--force", NETWORK, check=False)
            shutil.rmtree(self.directory / f"stage-{number}", ignore_errors=True)


@dataclass
class StagePods:
    """The pods of a stage."""

    node: Node
    number: int
    manifests: Manifests

    @property
    def directory(self) -> Path:
        return self.node.directory / f"stage-{self.number}"

    @property
    def workloads(self) -> list[Workload]:
        return [one for one in self.manifests.workloads() if one.name not in self.node.left_out]

    @property
    def front(self) -> str:
        return f"http://127.0.0.1:{self.node.base_port + (0 if self.number == 1 else 2)}"

    def start(self, workload: Workload) -> None:
        """Run one pod of a workload."""
        name = workload.name
        file = self.directory / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self._pod(workload)))
        # As a kubelet lays them out.
        log = self.directory / "pods" / f"{workload.namespace}_{name}_{time.time_ns()}" / workload.container["name"]
        log.mkdir(parents=True)
        aliases = "".join(f",alias={alias}" for alias in self._aliases(workload))
        self.node.podman(
            *("kube", "play", f"--network={NETWORK}:{aliases[1:]}", f"--log-opt=path={log / '0.log'}", str(file))
        )

    def _aliases(self, workload: Workload) -> list[str]:
        """The names of the services that select a workload's pods, as other pods know them."""
        services = self.manifests.of("Service").items()
        own = [
            name
            for (namespace, name), service in services
            if namespace == workload.namespace and service["spec"]["selector"].items() <= workload.labels.items()
        ]
        return [alias for name in own for alias in (name, f"{name}.{workload.namespace}")]

    def _pod(self, workload: Workload) -> Document:
        """A pod of the workload, with what a node would add, and without what podman does not support."""
        pod, container = copy.deepcopy(workload.pod), copy.deepcopy(workload.container)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            del container[probe]
        container.pop("lifecycle", None)
        container.pop("envFrom", None)
        container["image"] = self.node.names[workload.container["image"]]
        container["imagePullPolicy"] = "Never"
        given = self.manifests.environment(workload, SECRETS)
        container["env"] = [{"name": name, "value": value} for name, value in given.items()]
        outer = {there: here for here, there in forward.ports(workload.name, self.node.base_port).items()}
        container["ports"] = [
            {**port, "hostPort": outer[port["containerPort"]], "hostIP": "127.0.0.1"}
            for port in container["ports"]
            if port["containerPort"] in outer
        ]
        # This podman reads only the user of a container.
        container["securityContext"] |= {
            key: value for key, value in pod["securityContext"].items() if key in {"runAsUser", "runAsGroup"}
        }
        volumes = [self._volume(workload, name, volume) for name, volume in workload.volumes.items()]
        pod |= {"containers": [container], "volumes": volumes}
        metadata = {"name": workload.name, "labels": workload.labels}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}

    def _volume(self, workload: Workload, name: str, volume: Document) -> Document:
        if "configMap" in volume:
            mount = next(one["mountPath"] for one in workload.container["volumeMounts"] if one["name"] == name)
            path = self.directory / "files" / workload.name / name
            for place, content in self.manifests.files(workload):
                if Path(place).is_relative_to(mount):
                    file = path / Path(place).relative_to(mount)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(content)
            return {"name": name, "hostPath": {"path": str(path), "type": "Directory"}}
        if "hostPath" in volume:
            place = "pods" if volume["hostPath"]["path"] == "/var/log/pods" else "alloy"
            (self.directory / place).mkdir(parents=True, exist_ok=True)
            return {"name": name, "hostPath": {"path": str(self.directory / place), "type": "Directory"}}
        # A new volume of podman takes owner and mode from the image's directory; in a cluster they come from fsGroup.
        return {"name": name, "persistentVolumeClaim": {"claimName": f"{workload.name}-{name}"}}

    def probe(self, workload: Workload, kind: str) -> bool:
        """Whether a probe of a workload succeeds, sent as a kubelet sends it."""
        probe = workload.container[kind]
        if "exec" in probe:
            container = f"{workload.name}-{workload.container['name']}"
            command = [*PODMAN, "exec", container, *probe["exec"]["command"]]
            return containers.succeeds(command, self.node.environment)
        port = workload.ports[probe["httpGet"]["port"]]
        outer = {there: here for here, there in forward.ports(workload.name, self.node.base_port).items()}
        try:
            return get(f"http://127.0.0.1:{outer[port]}{probe['httpGet']['path']}", timeout=5).status == 200
        except OSError:
            return False

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until every probe of every pod succeeds."""
        for workload in self.workloads:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                wait_for(
                    lambda workload=workload, kind=kind: self.probe(workload, kind),  # type: ignore[misc]
                    timeout,
                    f"{kind} of {workload.name}\n{self.last_lines(workload.name)}",
                )

    def dicelab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lab.cli", *arguments, "--run-dir", str(self.directory / "run")]
        return subprocess.run(command, check=False, cwd=ROOT, env=self.node.environment, capture_output=True, text=True)

    def inspect(self) -> dict[str, dict[str, Any]]:
        """Podman's description of each container, by the name of its workload."""
        names = {f"{one.name}-{one.container['name']}": one.name for one in self.workloads}
        return {names[one["Name"]]: one for one in json.loads(self.node.podman("inspect", *names))}

    def last_lines(self, name: str = "*") -> str:
        """The end of each container's log, for the message of a failed test."""
        files = sorted((self.directory / "pods").glob(f"*_{name}_*/*/*.log"))
        return "\n".join(f"== {file.parent.name}\n{file.read_text()[-1500:]}" for file in files)


@contextmanager
def node(directory: Path) -> Iterator[Node]:
    """This machine, with the images of the lab.

    Args:
        directory: for all files.

    Raises:
        Unavailable: when something required is missing.
    """
    # On Debian catatonit, which holds a pod's namespaces, is a separate package.
    require("podman", "runc", "catatonit")
    environment = containers.podman_environment(directory)
    if not containers.succeeds([*PODMAN, "info"], environment):
        raise Unavailable("podman does not work here")
    names, left_out = containers.build_images(PODMAN, environment, directory)
    base = names[str(images.load()["dicelab"].base)]
    file = COMPOSE / "Dockerfile"
    try:
        subprocess.run(
            [*PODMAN, "build", "--network=host", f"--build-arg=BASE={base}", "-t", IMAGE, "-f", file, ROOT],
            check=True,
            env=environment,
            capture_output=True,
        )
        own = load("small/1").workload("dice-roller").container["image"]
        yield Node(directory, environment, {**names, own: IMAGE}, left_out)
    finally:
        subprocess.run([*PODMAN, "rmi", "--all", "--force"], check=False, env=environment, capture_output=True)
