"""A real API server of Kubernetes, without nodes: it admits manifests, and its controllers create the pods.

It needs the programs ``etcd``, ``kube-apiserver`` and ``kube-controller-manager``, as the tests of operators do.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.containers import require

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "openssl")
TOKEN = "token-of-the-tests"
START_TIMEOUT = 120.0  # seconds
# The controllers that are useful without nodes.
CONTROLLERS = (
    *("deployment-controller", "replicaset-controller", "statefulset-controller", "daemonset-controller"),
    *("horizontal-pod-autoscaler-controller", "serviceaccount-controller", "namespace-controller"),
    "garbage-collector-controller",
)


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Attributes:
        environment: with the ``KUBECONFIG`` of an administrator.
    """

    environment: Mapping[str, str]

    def kubectl(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", *arguments], check=False, env=self.environment, input=text, capture_output=True, text=True
        )

    def get(self, *arguments: str) -> Any:
        """The JSON document that ``kubectl get`` prints."""
        done = self.kubectl("get", "--output", "json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def version(self) -> str:
        """The version of the server, such as ``1.36``."""
        found = json.loads(self.kubectl("version", "--output", "json").stdout)["serverVersion"]
        return f"{found['major']}.{found['minor'].rstrip('+')}"


@contextmanager
def running(directory: Path) -> Iterator[ApiServer]:
    """An API server with its own etcd and controllers.

    Args:
        directory: for all files.

    Raises:
        Unavailable: when a program is missing.
    """
    require(*PROGRAMS)
    ports = _free_ports(3)
    store, peers, secure = (f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", ports[2])
    key, tokens, kubeconfig = directory / "accounts.key", directory / "tokens.csv", directory / "kubeconfig"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "test",
                        "cluster": {"server": f"https://127.0.0.1:{secure}", "insecure-skip-tls-verify": True},
                    }
                ],
                "users": [{"name": "admin", "user": {"token": TOKEN}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                "current-context": "test",
            }
        )
    )
    server = ApiServer({**os.environ, "KUBECONFIG": str(kubeconfig)})
    with ExitStack() as stack:
        stack.enter_context(
            _process(
                directory,
                "etcd",
                f"--data-dir={directory / 'etcd'}",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
            )
        )
        api = stack.enter_context(
            _process(
                directory,
                "kube-apiserver",
                f"--etcd-servers={store}",
                "--bind-address=127.0.0.1",
                f"--secure-port={secure}",
                f"--cert-dir={directory / 'certificates'}",
                f"--token-auth-file={tokens}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
            )
        )
        _wait_until_ready(server, api, directory)
        stack.enter_context(
            _process(
                directory,
                "kube-controller-manager",
                f"--kubeconfig={kubeconfig}",
                f"--service-account-private-key-file={key}",
                f"--controllers={','.join(CONTROLLERS)}",
                "--horizontal-pod-autoscaler-sync-period=1s",
                "--leader-elect=false",
                "--secure-port=0",
            )
        )
        yield server


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def _process(directory: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / f"{program}.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], cwd=directory, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while server.kubectl("get", "--raw", "/readyz").returncode != 0:
        log = (directory / "kube-apiserver.log").read_text()[-3000:]
        assert process.poll() is None, f"kube-apiserver ended:\n{log}"
        assert time.monotonic() < deadline, f"kube-apiserver is not ready:\n{log}"
        time.sleep(0.5)
