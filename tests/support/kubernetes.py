"""The manifests of the lab, built by kustomize, and the environment and files of the containers in a cluster."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import yaml

from lab.kubernetes.kustomize import DIRECTORY

Document = dict[str, Any]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
# The keys of the Secret that `make kubernetes` creates from compose/.env, and those that users may add.
SECRET = {"POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD", "SESSION_SECRET"}
OPTIONAL = {"ALERT_WEBHOOK_URL"}
NAME = "app.kubernetes.io/name"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def kustomize_command() -> list[str]:
    """The command that builds a kustomization; skips the test where there is none."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("neither kustomize nor kubectl is on PATH")


@functools.cache
def text(directory: str) -> str:
    """The output of kustomize for a directory below ``kubernetes/``."""
    command = [*kustomize_command(), "--load-restrictor", "LoadRestrictionsNone", str(DIRECTORY / directory)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert not built.stderr, built.stderr
    return built.stdout


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or DaemonSet; all of them have one container."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"]["namespace"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.document["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def pod(self) -> Document:
        pod: Document = self.document["spec"]["template"]["spec"]
        return pod

    @property
    def container(self) -> Document:
        (container,) = self.pod["containers"]
        found: Document = container
        return found

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    @property
    def volumes(self) -> dict[str, Document]:
        """Every volume by its name, including those of claim templates."""
        claims = self.document["spec"].get("volumeClaimTemplates", [])
        found = {claim["metadata"]["name"]: {"claim": claim} for claim in claims}
        return found | {volume["name"]: volume for volume in self.pod.get("volumes", [])}


class Manifests:
    """The documents of one build.

    Args:
        documents: as kustomize prints them.
    """

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def of(self, kind: str) -> dict[tuple[str, str], Document]:
        """The documents of a kind by namespace and name."""
        return {
            (document["metadata"].get("namespace", ""), document["metadata"]["name"]): document
            for document in self.documents
            if document["kind"] == kind
        }

    def workloads(self) -> list[Workload]:
        return [Workload(document) for document in self.documents if document["kind"] in WORKLOADS]

    def workload(self, name: str) -> Workload:
        (found,) = (workload for workload in self.workloads() if workload.name == name)
        return found

    def environment(self, workload: Workload, secrets: Mapping[str, str]) -> dict[str, str]:
        """The variables of a workload's container, apart from those of its image."""
        maps = self.of("ConfigMap")
        found: dict[str, str] = {}
        for source in workload.container.get("envFrom", []):
            found |= maps[workload.namespace, source["configMapRef"]["name"]]["data"]
        for variable in workload.container.get("env", []):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                if (value := secrets.get(source["secretKeyRef"]["key"])) is None:
                    continue
            elif "configMapKeyRef" in source:
                reference = source["configMapKeyRef"]
                value = maps[workload.namespace, reference["name"]]["data"][reference["key"]]
            else:
                value = str(variable["value"])
            found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), str(value))
        return found

    def files(self, workload: Workload) -> Iterator[tuple[str, str]]:
        """Each file that a ConfigMap puts into a workload's container: its path there, and its text."""
        maps = self.of("ConfigMap")
        for mount in workload.container.get("volumeMounts", []):
            volume = workload.volumes[mount["name"]].get("configMap")
            if volume is None:
                continue
            data = maps[workload.namespace, volume["name"]]["data"]
            items = volume.get("items") or [{"key": key, "path": key} for key in data]
            for item in items:
                if item["key"] in data:
                    yield f"{mount['mountPath']}/{item['path']}", data[item["key"]]


def validate(documents: Iterable[Document], version: str) -> None:
    """Validate documents against the strict schemas of a version of Kubernetes.

    Raises:
        kubernetes_validate.ValidationError: for the first one that is not valid.
    """
    import kubernetes_validate  # imported here: it takes three seconds
    from kubernetes_validate import utils

    # Without the cache it reads the definitions, a megabyte, for each document.
    with mock.patch.object(utils, "schema_contents", functools.cache(utils.schema_contents)):
        for document in documents:
            assert kubernetes_validate.validate(document, version, strict=True) == version


@functools.cache
def load(directory: str) -> Manifests:
    """The manifests of a directory below ``kubernetes/``; do not change them."""
    return Manifests(list(yaml.load_all(text(directory), Loader)))
