"""README and docs match the code: settings, metrics, fields, files and commands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lab.cli import dicelab
from lab.paths import ROOT
from tests.support import matrix

README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
TELEMETRY = (ROOT / "docs" / "telemetry.md").read_text()
ROOMS = ("roller", "dieservice", "frontend", "alertreceiver", "exporter", "web")


def variables_read() -> set[str]:
    """Every environment variable that the settings of a service read."""
    call = re.compile(
        r"env\.(?:text|choice|flag|integer|number|optional_integer|optional_url|url|names|secret)\(\s*\"([A-Z_]+)\""
    )
    named = {name for room in ROOMS for path in (ROOT / room).glob("*.py") for name in call.findall(path.read_text())}
    # Read by otel/__init__.py, before the settings.
    return named | {"TELEMETRY"}


def test_every_setting_is_documented() -> None:
    rows = [line.split("|")[1] for line in SETTINGS.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert documented == variables_read()


@pytest.mark.parametrize(("stage", "service", "name"), [row[:3] for row in matrix.METRICS])
def test_metrics_are_documented_with_their_stage_and_labels(stage: int, service: str, name: str) -> None:
    kind, labels = next(row[3:] for row in matrix.METRICS if row[2] == name)
    shown = f"{name}_total" if kind == "counter" else name
    (row,) = [line for line in TELEMETRY.splitlines() if line.startswith(f"| {stage} | {service} | `{shown}` |")]
    assert set(re.findall(r"`(\w+)`", row.split("|")[4])) == labels


@pytest.mark.parametrize(("stage", "name"), [row[:2] for row in matrix.LOG_FIELDS])
def test_log_fields_are_documented_with_their_stage(stage: int, name: str) -> None:
    assert f"\n| {stage} | `{name}` |" in TELEMETRY


def test_every_option_of_the_command_is_documented() -> None:
    for name, command in dicelab.commands.items():
        assert f"dicelab {name}" in COMMANDS
        assert f"`{name}`" in README or f"`dicelab {name}" in README
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in COMMANDS, option


def test_files_and_targets_in_the_readme_exist() -> None:
    for path in re.findall(r"\]\((?!http)([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert target == "and" or f"\n{target}:" in makefile


DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_files_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\((?!http)([\w./-]+)(?:#[\w-]+)?\)", text)
    paths = re.findall(r"`((?:[\w-]+/)+[\w.-]*)`", text)
    assert links or paths or document.stem not in ("CONTRIBUTING", "CHANGELOG", "architecture", "security", "telemetry")
    for path in links:
        assert (document.parent / path).exists(), path
    for path in paths:
        assert (ROOT / path.replace("/N.", "/1.")).exists() or path == "logs/dice-roller.jsonl", path


def test_functions_and_classes_in_the_architecture_exist() -> None:
    text = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    named = re.findall(r"`([\w/]+\.py)` \(`([\w.]+)`\)", text)
    assert len(named) >= 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        for part in name.split("."):
            found = [node for node in ast.iter_child_nodes(tree) if getattr(node, "name", None) == part]
            assert found, f"{path}: {name}"
            tree = found[0]


def test_makefile_targets_in_contributing_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"up", "test", "lint", "lock"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile
