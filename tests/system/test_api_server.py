"""The manifests in a real API server, which has all admission plugins, and ``chaos --kubernetes`` against it.

It has no node: pods are created and stay pending.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.pods import PodTarget
from lab.kubernetes import kustomize, pods
from lab.paths import ROOT
from lab.supervise import stages
from tests.support import api_server
from tests.support.api_server import ApiServer
from tests.support.containers import Unavailable
from tests.support.kubernetes import Document, load
from tests.support.labs import wait_for

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(api_server.running(tmp_path_factory.mktemp("api")))
        except Unavailable as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that ``make kubernetes`` reads; it writes passwords there."""
    directory = tmp_path_factory.mktemp("checkout")
    for part in ("alloy", "compose", "grafana", "kubernetes"):
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    shutil.copy(ROOT / "Makefile", directory)
    return directory


def make(server: ApiServer, checkout: Path, *arguments: str) -> str:
    """The output of ``make``, including warnings of the API server."""
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        check=False,
        cwd=checkout,
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def pod_of(workload: Document, name: str) -> Document:
    """A pod as a controller creates it for a workload, with a volume for each claim."""
    template = copy.deepcopy(workload["spec"]["template"])
    for claim in workload["spec"].get("volumeClaimTemplates", []):
        template["spec"].setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
    metadata = {**template["metadata"], "name": name, "namespace": workload["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def admitted(server: ApiServer, *pods: Document) -> subprocess.CompletedProcess[str]:
    """The output of kubectl for pods that the server checks but does not keep."""
    several = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(pods)})
    return server.kubectl("create", "--dry-run=server", "--filename=-", text=several)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_stage_is_admitted_without_a_warning(server: ApiServer, checkout: Path, stage: int) -> None:
    said = make(server, checkout, "kubernetes", f"STAGE={stage}", "APPLY=1")
    assert "Warning" not in said
    for namespace in (kustomize.NAMESPACE, kustomize.NODES_NAMESPACE):  # a pod needs the account of its namespace
        wait_for(lambda namespace=namespace: server.get("serviceaccounts", "--namespace", namespace)["items"])  # type: ignore[misc]
    workloads = load(f"small/{stage}").workloads()
    answer = admitted(server, *(pod_of(one.document, f"{one.name}-by-hand") for one in workloads))
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr, answer.stderr
    assert answer.stdout.count(" created (server dry run)") == len(workloads)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation"),
        ({"capabilities": {"drop": []}}, "unrestricted capabilities"),
        ({"runAsUser": 0, "runAsNonRoot": False}, "runAsNonRoot"),
    ],
)
def test_pods_that_ask_for_a_privilege_are_refused(
    server: ApiServer, checkout: Path, change: dict[str, Any], reason: str
) -> None:
    make(server, checkout, "kubernetes", "STAGE=1", "APPLY=1")
    pod = pod_of(load("small/1").workload("dice-roller").document, "privileged")
    pod["spec"]["containers"][0]["securityContext"] |= change
    answer = admitted(server, pod)
    assert answer.returncode != 0
    assert "PodSecurity" in answer.stderr
    assert reason in answer.stderr


async def test_experiments_stop_kill_and_start_pods(
    server: ApiServer, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the start: no pod becomes ready here, so that a change of an earlier stage would never be rolled out.
    make(server, checkout, "kubernetes", "STAGE=6", "APPLY=1")
    make(server, checkout, "kubernetes-down")
    make(server, checkout, "kubernetes", "STAGE=6", "APPLY=1")
    monkeypatch.setenv("KUBECONFIG", server.environment["KUBECONFIG"])
    found = await pods.find()
    assert found.workloads.keys() == {workload.name for workload in load("small/6").workloads()}

    def names(part: str) -> set[str]:
        selected = server.get("pods", "--namespace", "dicelab", "--selector", f"app.kubernetes.io/name={part}")
        return {pod["metadata"]["name"] for pod in selected["items"] if "deletionTimestamp" not in pod["metadata"]}

    def limits() -> tuple[int, int]:
        spec = server.get("horizontalpodautoscaler", "--namespace", "dicelab", "dice-roller")["spec"]
        return spec["minReplicas"], spec["maxReplicas"]

    before = limits()
    # Without a metrics server an autoscaler stays within its limits, on which the experiment relies.
    wait_for(lambda: len(names("dice-roller")) == before[0], timeout=60)
    async with PodTarget(found) as target:
        assert limits() == (1, 1)
        assert len(names("dice-roller")) == len(names("die-service")) == 1
        (old,) = names("die-service")
        await target.stop("die-service")
        wait_for(lambda: not names("die-service"), timeout=30)
        await target.start("die-service")
        wait_for(lambda: len(names("die-service")) == 1, timeout=30)
        (new,) = names("die-service")
        assert new != old
        await target.kill("die-service")
        wait_for(lambda: len(names("die-service")) == 1 and names("die-service") != {new}, timeout=30)
        await target.stop("postgres")
        assert not names("postgres")
    assert limits() == before
    wait_for(lambda: names("postgres") == {"postgres-0"}, timeout=30)
    wait_for(lambda: len(names("dice-roller")) == before[0], timeout=60)


def test_the_lab_is_deleted_and_its_volumes_stay(server: ApiServer, checkout: Path) -> None:
    make(server, checkout, "kubernetes", "STAGE=6", "APPLY=1")
    assert "created" not in make(server, checkout, "kubernetes", "STAGE=6", "APPLY=1")  # only the first time
    wait_for(lambda: server.get("persistentvolumeclaims", "--namespace", "dicelab")["items"], timeout=60)
    claims = len(server.get("persistentvolumeclaims", "--namespace", "dicelab")["items"])
    make(server, checkout, "kubernetes-down")
    assert not server.get("deployments,statefulsets,services", "--namespace", "dicelab")["items"]
    assert len(server.get("persistentvolumeclaims", "--namespace", "dicelab")["items"]) == claims
    assert server.get("secret", "--namespace", "dicelab", "dicelab")
