"""A container with the image of the compose project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from lab.paths import COMPOSE, ROOT
from tests.support.labs import get, wait_for


def container_engine() -> str | None:
    """The command of a container engine that works here; a client alone is not enough."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], check=False, capture_output=True).returncode == 0:
            return name
    return None


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[str, str]]:
    """The engine and the name of the image, built from the shipped Dockerfile.

    ``DICELAB_BASE_IMAGE`` replaces the base image where no registry can be reached.
    """
    engine = container_engine()
    if engine is None:
        pytest.skip("neither docker nor podman works here")
    (default,) = re.findall(r"^ARG BASE=(\S+)$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    base = os.environ.get("DICELAB_BASE_IMAGE", default)
    there = [engine, "image", "inspect", base], [engine, "pull", "--quiet", base]
    if all(subprocess.run(command, check=False, capture_output=True).returncode for command in there):
        pytest.skip(f"{base} is not here and cannot be pulled")
    name = f"localhost/dicelab-test:{uuid.uuid4().hex[:8]}"
    # Only docker's image format has health checks; podman needs an option for it.
    options = ["--format=docker"] if engine == "podman" else []
    command = [engine, "build", "--network=host", "--build-arg", f"BASE={base}", "-t", name, *options]
    built = subprocess.run([*command, "-f", COMPOSE / "Dockerfile", ROOT], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    yield engine, name
    subprocess.run([engine, "rmi", "--force", name], check=False, capture_output=True)


@pytest.mark.timeout(600)
def test_the_image_runs_unprivileged_on_a_read_only_disk(image: tuple[str, str]) -> None:
    engine, name = image

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([engine, *arguments], check=False, capture_output=True, text=True)

    started = run(
        *("run", "--detach", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp", "--memory=512m"),
        *("--publish=127.0.0.1::8000", "--env=OTEL_TRACES_EXPORTER=none", "--env=ROLL_DELAY=0"),
        *("--env=ASYNC_ROLLS=true", name, "python", "-m", "roller"),
    )
    assert started.returncode == 0, started.stderr
    container = started.stdout.strip()
    try:
        address = run("port", container, "8000").stdout.strip()
        wait_for(lambda: get_or_none(f"http://{address}/readyz"), timeout=60)
        assert len(get(f"http://{address}/roll-async?die=fair&times=3").json["rolls"]) == 3
        assert run("exec", container, "id", "-u").stdout.strip() == "10001"
        assert run("exec", container, "touch", "/venv/app/x").returncode != 0
        health = "{{.State.Health.Status}}" if engine == "docker" else "{{.State.Healthcheck.Status}}"
        if engine == "podman":
            assert run("healthcheck", "run", container).returncode == 0
        wait_for(lambda: run("inspect", "--format", health, container).stdout.strip() == "healthy", timeout=30)
        run("stop", "--time=20", container)
        assert run("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() == "0"
        assert all(line.startswith("{") for line in run("logs", container).stdout.splitlines())
    finally:
        run("rm", "--force", container)


def get_or_none(url: str) -> bool:
    try:
        return get(url).status == 200
    except OSError:
        return False
