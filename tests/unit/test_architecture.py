"""The directions in which packages may import each other, as docs/architecture.md and CONTRIBUTING.md state them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.paths import ROOT

SERVICES = ("roller", "dieservice", "frontend", "exporter", "alertreceiver")
OURS = {*SERVICES, "otel", "web", "lab", "bench", "grafana", "tests"}
# What each package may import of this repository, besides itself.
ALLOWED = {
    **{service: {"web", "otel"} for service in SERVICES},
    "web": {"otel"},
    "otel": set(),
    "lab": {"otel"},  # commands make root spans of their own
    "bench": {"roller", "dieservice", "frontend", "web", "otel", "lab"},
    "grafana": {"lab"},
}
# Parts of lab/ that serve different commands.
APART = ("bench", "cost", "diff", "learn", "mystery", "kubernetes")


def imports(package: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a package, and each module that it imports, also inside functions."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    found = list(imports(ROOT / package))
    assert found
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path, name in found
        if (root := name.partition(".")[0]) in OURS and root != package and root not in ALLOWED[package]
    }
    assert wrong == set()


def commands() -> list[str]:
    """The modules that the command line runs, such as ``lab.load.traffic``."""
    return [
        f"lab.{node.args[0].value}"
        for node in ast.walk(ast.parse((ROOT / "lab" / "cli.py").read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "_run"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def test_nothing_imports_a_command() -> None:
    """What several commands need has a module of its own; a package's ``__main__`` is a command itself."""
    found = commands()
    assert {"lab.check", "lab.load.traffic", "lab.chaos.command"} <= set(found)
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for package in ALLOWED
        for path, name in imports(ROOT / package)
        for command in found
        if path.name != "__main__.py" and f"{name}.".startswith(f"{command}.")
    }
    assert wrong == set()


@pytest.mark.parametrize("part", APART)
def test_commands_do_not_import_commands(part: str) -> None:
    found = list(imports(ROOT / "lab" / part))
    assert found
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path, name in found
        for other in APART
        if other != part and f"{name}.".startswith(f"lab.{other}.")
    }
    assert wrong == set()
