"""The compose project in containers, started and stopped by the command a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.client import BASE_PORT
from lab.containers import PROJECT
from lab.paths import COMPOSE, ROOT
from tests.support import images, standins
from tests.support.labs import wait_for

# The prefix of the stand-ins' names.
PREFIX = "localhost/dicelab-standin"
# BuildKit builds the image that several services share once; Podman would build it for each of them.
BUILT_BY = "alert-receiver"
RESET = "reset"
PARTS = ("alertreceiver", "alloy", "compose", "dieservice", "exporter", "frontend", "grafana", "otel", "roller", "web")
# Without systemd, podman does not run health checks.
SYSTEMD = Path("/run/systemd/system")


class Unavailable(Exception):
    """Something that a test needs is not available here; the text says why."""


def require(*programs: str) -> None:
    """Raise :class:`Unavailable` for a program that is not on PATH."""
    for program in programs:
        if not shutil.which(program):
            raise Unavailable(f"{program} is not on PATH")


@dataclass(frozen=True)
class Containers:
    """A checkout of the project, and the container engine that runs it.

    Attributes:
        engine: the command of the container engine's client.
        compose: the command of compose.
        left_out: the services without an image here, and the reason.
    """

    engine: list[str]
    compose: list[str]
    checkout: Path
    environment: dict[str, str]
    left_out: dict[str, str]

    def make(self, target: str, *arguments: str) -> None:
        """Run ``make compose`` or ``make compose-down`` under umask 077."""
        made = subprocess.run(
            ["make", "--no-print-directory", target, f"COMPOSE={' '.join(self.compose)}", *arguments],
            check=False,
            cwd=self.checkout,
            env=self.environment,
            umask=0o077,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, f"{made.stdout[-3000:]}\n{made.stderr[-6000:]}\n{self.last_lines()}"

    def dicelab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab.cli", *arguments],
            check=False,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """The output of the engine's client."""
        done = subprocess.run(
            [*self.engine, *arguments], check=False, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def inspect(self) -> dict[str, dict[str, Any]]:
        """The engine's description of every container of the project, by service."""
        label = f"label=com.docker.compose.project={PROJECT}"
        ids = self.run("ps", "--all", "--quiet", "--filter", label).split()
        found = json.loads(self.run("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def last_lines(self) -> str:
        """The end of each container's log, for the message of a failed test."""
        texts = []
        for name, container in self.inspect().items():
            command = [*self.engine, "logs", "--tail=5", container["Id"]]
            log = subprocess.run(
                command, check=False, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            texts.append(f"== {name}: {container['State']['Status']}\n{log.stdout[-1500:]}")
        return "\n".join(texts)


@contextmanager
def project(directory: Path) -> Iterator[Containers]:
    """The project, ready to start, with stand-ins for its images.

    Args:
        directory: for all files that are not in the container engine.

    Raises:
        Unavailable: when something required is missing.
    """
    compose = _compose()
    for offset in (*range(3), *range(10, 24)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", BASE_PORT + offset))
            except OSError:
                raise Unavailable(f"port {BASE_PORT + offset}, which the compose file publishes, is in use") from None
    with _engine(directory) as (engine, environment):
        containers = Containers(engine, compose, _checkout(directory), environment, {})
        if containers.run("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"):
            raise Unavailable("this container engine has a lab of its own, whose data these tests would delete")
        names, left_out = build_images(engine, environment, directory)
        containers.left_out.update(left_out)
        _override(containers, names)
        try:
            yield containers
        finally:
            containers.make("compose-down", "ARGS=--volumes")
            containers.run("rmi", "--force", *names.values(), f"{PREFIX}/dicelab")


def _compose() -> list[str]:
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise Unavailable("neither docker compose nor docker-compose is on PATH")


@contextmanager
def _engine(directory: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Docker if its daemon runs; otherwise Podman's service, with a storage of its own."""
    works = {name: bool(shutil.which(name)) and succeeds([name, "info"]) for name in ("docker", "podman")}
    if works["docker"]:
        yield ["docker"], dict(os.environ)
    elif works["podman"]:
        with _podman_service(directory) as environment:
            yield ["podman"], environment
    else:
        raise Unavailable("neither docker nor podman works here")


def succeeds(command: list[str], environment: Mapping[str, str] = os.environ) -> bool:
    return subprocess.run(command, check=False, env=environment, capture_output=True).returncode == 0


def podman_environment(directory: Path) -> dict[str, str]:
    """The environment of a Podman whose images, containers and networks are below a directory."""
    (directory / "networks").mkdir()
    storage = directory / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/images"\nrunroot = "{directory}/containers"\n'
    )
    configuration = directory / "containers.conf"
    configuration.write_text(
        # Podman raises these limits by default, which it is not allowed to where it runs in a container itself.
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{directory}/networks"\n'
    )
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(configuration)}


@contextmanager
def _podman_service(directory: Path) -> Iterator[dict[str, str]]:
    path = directory / "podman.sock"
    environment = {
        **podman_environment(directory),
        "DOCKER_HOST": f"unix://{path}",
        "DOCKER_SOCKET": str(path),
    }
    with (directory / "podman.log").open("w") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{path}"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        ended = threading.Event()
        probes = threading.Thread(target=_probe, args=(environment, ended))
        try:
            wait_for(path.exists)
            if not SYSTEMD.exists():
                probes.start()
            yield environment
        finally:
            ended.set()
            if probes.is_alive():
                probes.join()
            subprocess.run(["podman", "rm", "--all", "--force"], check=False, env=environment, capture_output=True)
            service.send_signal(signal.SIGTERM)
            service.wait()


def _probe(environment: dict[str, str], ended: threading.Event) -> None:
    """Run the health checks of containers that are not healthy yet, as systemd would."""
    listing = ["podman", "ps", "--format", "{{.ID}} {{.Status}}"]
    while not ended.wait(1):
        listed = subprocess.run(listing, check=False, env=environment, capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            if "(healthy)" not in line:
                check = ["podman", "healthcheck", "run", line.split()[0]]
                subprocess.run(check, check=False, env=environment, capture_output=True)


def _checkout(directory: Path) -> Path:
    """The project as a checkout made under umask 077."""
    checkout = directory / "checkout"
    checkout.mkdir()
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", ".env", ".targets", "compose.override.yaml")
        shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
    for file in ("Makefile", ".dockerignore"):
        shutil.copy(ROOT / file, checkout)
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    return checkout


def build_images(
    engine: list[str], environment: Mapping[str, str], directory: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Build the stand-ins.

    Returns:
        The name of each by the image that it replaces, and the services without one, with the reason.

    Raises:
        Unavailable: when one is missing that others depend on.
    """
    services: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    known = images.load()
    wanted = [image for name, image in known.items() if name != "dicelab"]  # which has its own Dockerfile
    missing = {image.name: why for image in wanted if (why := standins.missing(image))}
    left_out = {
        service: missing[settings["image"]] for service, settings in services.items() if settings["image"] in missing
    }
    needed = {other for settings in services.values() for other in settings.get("depends_on", {})}
    reasons = {why for service, why in left_out.items() if service in needed}
    reasons |= {why for name, why in missing.items() if name == known["dicelab"].base}
    if reasons:
        raise Unavailable(", ".join(sorted(reasons)))
    names = {image.name: f"{PREFIX}/{image.name}" for image in wanted if image.name not in missing}
    for image, name in names.items():
        standins.build(engine, known[image], name, directory, environment)
    return names, left_out


def _override(containers: Containers, names: dict[str, str]) -> None:
    """Make compose use the stand-ins, and leave out services without one."""
    services: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    changed: dict[str, dict[str, Any]] = {}
    for service, settings in services.items():
        if service in containers.left_out:
            changed[service] = {"profiles": ["left-out"]}
        elif settings["image"] in names:
            changed[service] = {"image": names[settings["image"]], "pull_policy": "never"}
        elif service == BUILT_BY:
            base = names[str(images.load()["dicelab"].base)]
            changed[service] = {
                "image": f"{PREFIX}/dicelab",
                "build": {"args": {"BASE": base}, "network": "host"},
            }
        else:
            changed[service] = {"image": f"{PREFIX}/dicelab", "build": RESET, "pull_policy": "never"}
        if "healthcheck" in settings and service not in containers.left_out:
            # The checks run one after another without their intervals (see _probe): on a busy machine the usual three
            # can fail within seconds, and compose gives up on a container that is unhealthy once.
            changed[service]["healthcheck"] = {"retries": 20}
    override = yaml.safe_dump({"services": changed}).replace(f"build: {RESET}", "build: !reset null")
    (containers.checkout / "compose" / "compose.override.yaml").write_text(override)
