"""The wheel: it contains the files that a lab reads, and a lab runs from it in any directory."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.support.labs import clean_environ, free_base_port, get

PACKAGES = (
    *(
        "alertreceiver",
        "alloy",
        "bench",
        "compose",
        "dieservice",
        "exporter",
        "frontend",
        "grafana",
        "lab",
        "otel",
        "roller",
    ),
    "web",
)
# Needed only by `make compose`, in a checkout.
CHECKOUT_ONLY = {path for path in (ROOT / "compose").iterdir() if path.is_file()}
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def packaged_files() -> set[str]:
    """The files of the packages in the checkout, relative to its root, without generated ones."""
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path not in CHECKOUT_ONLY and not {"__pycache__", ".targets"} & set(path.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy, because a build leaves files in its source."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    (source / "compose" / ".env").write_text("POSTGRES_PASSWORD=secret\n")
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."], cwd=source, check=True
    )
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it; its dependencies are those of the one that runs the tests."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    subprocess.run([*PIP, "--python", environment, "install", "--no-deps", "--no-compile", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return environment


@pytest.fixture
def elsewhere(tmp_path: Path, installed: Path) -> Iterator[Path]:
    yield tmp_path
    subprocess.run([installed / "bin" / "dicelab", "down"], cwd=tmp_path, env=clean_environ(), check=False)


def test_the_wheel_contains_every_package_file_and_no_password(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == packaged_files()


def test_a_lab_runs_from_the_wheel_in_another_directory(installed: Path, elsewhere: Path) -> None:
    base_port = free_base_port()
    command = [str(installed / "bin" / "dicelab"), "up", "--detach", "--base-port", str(base_port), "--roll-delay", "0"]
    started = subprocess.run(command, cwd=elsewhere, env=clean_environ(), capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    state = json.loads((elsewhere / ".dicelab" / "state.json").read_text())
    assert [entry["name"] for entry in state["services"]] == ["die-service", "dice-roller", "frontend"]
    for entry in state["services"]:
        command_line = Path(f"/proc/{entry['pid']}/cmdline").read_text()
        assert command_line.startswith(str(installed)), command_line
    assert get(f"http://127.0.0.1:{base_port}/roll?die=fair").json["roll"] in range(1, 7)
    assert get(f"http://127.0.0.1:{base_port + 2}/roll?die=fair").json["roll"] in range(1, 7)
    assert get(f"http://127.0.0.1:{base_port + 2}/docs").status == 200
    assert "Sign in" in get(f"http://127.0.0.1:{base_port + 2}/").body.decode()
