"""A lab in a cluster, through kubectl.

A program replaces kubectl: it records its command lines and answers from a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from lab.chaos.pods import PAUSE_SCRIPT, PodTarget
from lab.cli import main
from lab.kubernetes import forward, pods
from lab.kubernetes.pods import Workload
from lab.supervise import engines, stages
from tests.support.labs import wait_for

PROGRAM = f"""#!{sys.executable}
import json, sys
words = " ".join(sys.argv[1:])
with open("{{directory}}/calls", "a") as calls:
    calls.write(words + "\\n")
if " exec --stdin " in words:
    text = sys.stdin.read()
    with open("{{directory}}/ended", "a") as ended:
        ended.write(text + "end of input\\n")
for part, answer in json.load(open("{{directory}}/answers")).items():
    if part in words:
        print(answer)
        sys.exit()
"""
POD = {"metadata": {"name": "pod-1", "uid": "1", "creationTimestamp": "2026-11-25T10:00:00Z"}, "status": {}}
IN_CLUSTER = {
    "dice-roller": ("Deployment", "dicelab"),
    "frontend": ("Deployment", "dicelab"),
    "postgres": ("StatefulSet", "dicelab"),
    "alloy": ("DaemonSet", "dicelab-nodes"),
}


class Cluster:
    """The answers of kubectl, and the command lines that it was called with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: dict[str, Any] = {
            "get deployments": {"items": []},
            "get pods": {"items": [POD]},
            "get statefulset/postgres --output jsonpath": 1,
            "get horizontalpodautoscaler dice-roller": {"spec": {"minReplicas": 2, "maxReplicas": 10}},
        }
        for name, (kind, namespace) in IN_CLUSTER.items():
            listed = self.answers.setdefault(f"--namespace {namespace} get deployments", {"items": []})
            listed["items"].append({"kind": kind, "metadata": {"name": name}})
        self.answer()

    def answer(self, **changes: Any) -> None:
        self.answers |= changes
        # The longest part first: it is the most specific one.
        ordered = sorted(self.answers.items(), key=lambda one: -len(one[0]))
        texts = {part: one if isinstance(one, str) else json.dumps(one) for part, one in ordered}
        (self.directory / "answers").write_text(json.dumps(texts))

    def calls(self, *, without: str = " get ") -> list[str]:
        """The command lines so far, except those that change nothing."""
        return [line for line in (self.directory / "calls").read_text().splitlines() if without not in line]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("{directory}", str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return Cluster(tmp_path)


async def test_a_lab_is_found_in_both_namespaces(cluster: Cluster) -> None:
    found = await pods.find()
    assert found.workloads == {name: Workload(kind.lower(), name, at) for name, (kind, at) in IN_CLUSTER.items()}
    with pytest.raises(LabError, match="the cluster has no tempo"):
        found.workload("tempo")
    cluster.answers.clear()
    cluster.answer(**{"get deployments": {"items": []}})
    with pytest.raises(LabError, match="make kubernetes APPLY=1"):
        await pods.find()


async def test_without_kubectl_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="kubectl is not on PATH"):
        await pods.find()


async def test_log_lines_are_those_of_all_pods(cluster: Cluster) -> None:
    cluster.answer(logs='{"message": "one"}\n{"message": "two"}')
    found = await pods.find()
    assert found.log_lines("alloy") == ['{"message": "one"}', '{"message": "two"}']
    assert cluster.calls()[-1] == (
        "--namespace dicelab-nodes logs --selector app.kubernetes.io/name=alloy --tail=-1 --ignore-errors"
    )


HELD = '--namespace dicelab patch horizontalpodautoscaler dice-roller --type=merge --patch {"spec": {%s}}'
ONE = HELD % '"minReplicas": 1, "maxReplicas": 1'
RELEASED = HELD % '"minReplicas": 2, "maxReplicas": 10'
DELETED = "--namespace dicelab delete pods --selector app.kubernetes.io/name={} --grace-period=0 --force"
SCALED = "--namespace dicelab scale statefulset/postgres --replicas={}"


async def test_a_stopped_part_has_no_pod_until_it_is_started(cluster: Cluster) -> None:
    async with PodTarget(await pods.find()) as target:
        assert cluster.calls() == [ONE]
        await target.stop("postgres")
        await target.start("postgres")
        cluster.answer(**{"get daemonset/alloy": ""})
        with pytest.raises(LabError, match="a daemonset such as the alloy"):
            await target.stop("alloy")
    assert cluster.calls()[1:] == [SCALED.format(0), DELETED.format("postgres"), SCALED.format(1), RELEASED]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
async def test_faults_are_undone_when_an_experiment_fails(cluster: Cluster, error: type[BaseException]) -> None:
    cluster.answer(**{"get statefulset/postgres --output jsonpath": 3})
    target = PodTarget(await pods.find())
    await target.__aenter__()
    await target.stop("postgres")
    await target.__aexit__(error, error(), None)
    assert cluster.calls()[-2:] == [SCALED.format(3), RELEASED]


async def test_the_other_faults_are_undone_when_one_cannot_be_undone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unlock() -> None:
        raise LabError("psql ended with 2")

    cluster.answer(**{"get statefulset/postgres --output jsonpath": 3})
    target = PodTarget(await pods.find())
    await target.__aenter__()
    await target.stop("postgres")
    monkeypatch.setattr(target, "unlock", unlock)
    with pytest.raises(LabError, match="psql ended"):
        await target.__aexit__(None, None, None)
    assert cluster.calls()[-2:] == [SCALED.format(3), RELEASED]


async def test_autoscalers_are_released_when_they_do_not_obey(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.chaos.pods.SETTLE", 0.1)
    cluster.answer(**{"get pods": {"items": [POD, POD]}})
    with pytest.raises(LabError, match="has not left one pod"):
        async with PodTarget(await pods.find()):
            pytest.fail("the experiment must not begin")
    assert cluster.calls() == [ONE, RELEASED]


async def test_a_slow_part_is_paused_by_a_script_that_ends_with_its_input(cluster: Cluster) -> None:
    async with PodTarget(await pods.find()) as target:
        await target.slow("postgres", 0)  # nothing to do
        await target.slow("postgres", 0.5)
        wait_for(lambda: any("exec --stdin pod-1 -- bash -c" in line for line in cluster.calls()))
        assert not (cluster.directory / "ended").exists()
        await target.slow("postgres", 0)
        assert (cluster.directory / "ended").read_text() == "end of input\n"


def test_the_script_that_pauses_is_valid() -> None:
    script = PAUSE_SCRIPT.format(pause=0.5, run=0.05)
    subprocess.run(["bash", "-n", "-c", script], check=True)
    assert "read -t 0.5" in script


async def test_the_table_is_locked_and_unlocked_by_psql(cluster: Cluster) -> None:
    async with PodTarget(await pods.find()) as target:
        await target.lock()
        await target.unlock()
    locked, unlocked = cluster.calls()[1:3]
    start = "--namespace dicelab exec statefulset/postgres -- psql --username=dice --dbname=dice --command"
    assert {line.removeprefix(start).split()[0] for line in (locked, unlocked)} == {"BEGIN;", "SELECT"}


@pytest.mark.parametrize(
    "later",
    [
        {"metadata": {**POD["metadata"], "uid": "2"}, "status": {}},  # another pod
        {"metadata": POD["metadata"], "status": {"containerStatuses": [{"restartCount": 1}]}},
    ],
)
async def test_a_new_pod_and_a_restart_are_other_processes(cluster: Cluster, later: dict[str, Any]) -> None:
    target = PodTarget(await pods.find())
    before = await target.processes()
    assert before.keys() == IN_CLUSTER.keys()
    assert await target.processes() == before
    cluster.answer(**{"get pods": {"items": [later]}})
    after = await target.processes()
    assert all(after[name] not in (None, before[name]) for name in after)
    leaving = {"metadata": {**POD["metadata"], "deletionTimestamp": "2026-11-25T10:00:01Z"}, "status": {}}
    cluster.answer(**{"get pods": {"items": [leaving]}})
    assert set((await target.processes()).values()) == {None}


# --- forwarding ---


def test_forwarded_ports_have_the_numbers_of_all_labs(capsys: pytest.CaptureFixture[str]) -> None:
    assert forward.ports("dice-roller", 9000) == {9000: 8000}
    assert forward.ports("frontend", 9000) == {9002: 8000}
    assert forward.ports("otel-collector", 8000) == {8018: 13133, 8016: 4317, 8017: 4318, 8019: 8888}
    assert forward.ports("postgres", 8000) == {}
    names = [*(engine.name for engine in engines.ENGINES), *(service.name for service in stages.SERVICES)]
    assert all(forward.ports(name, 8000) for name in names)
    highest = 65535 - max(port for name in names for port in forward.ports(name, 0))
    assert main(["forward", "--base-port", str(highest + 1)]) == 2
    assert f"from 1 to {highest}" in capsys.readouterr().err


def test_a_forward_that_ends_is_started_again(
    cluster: Cluster, own_process: Callable[..., subprocess.Popen[str]]
) -> None:
    process = own_process("forward", "--base-port", "9000")
    line = "--namespace dicelab port-forward service/frontend 9002:8000"
    wait_for(lambda: (cluster.directory / "calls").exists() and cluster.calls().count(line) > 1)
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert not any("postgres" in call for call in cluster.calls())
    assert "--namespace dicelab-nodes port-forward service/alloy 9022:12345" in cluster.calls()


@pytest.fixture
def own_process() -> Any:
    """Start ``dicelab`` with arguments; it is stopped after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lab.cli", *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
