"""``TELEMETRY`` chooses one of two packages, and falls back to the standard one if the other is not possible."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import otel
from lab.paths import ROOT
from otel.fast import private

INTERFACE = {
    "traces": ["start", "span", "root_span", "rename_span", "set_attribute", "record_failure", "current_ids",
               "instrument_session", "dropped", "TraceFile", "TracingError"],
    "logs": ["start", "events", "dropped"],
    "metrics": ["new_registry", "Counter", "Gauge", "Histogram", "exemplar"],
}  # fmt: skip
# Moves the API's context to another place than otel.fast expects.
MOVED = """
import opentelemetry.context as context, runpy
class Moved:
    def __init__(self, inner):
        self.attach, self.detach, self.get_current = inner.attach, inner.detach, inner.get_current
context._RUNTIME_CONTEXT = Moved(context._RUNTIME_CONTEXT)
runpy.run_module("roller", run_name="__main__")
"""


def python(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TELEMETRY"))}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | environ, cwd=ROOT, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("module", INTERFACE)
@pytest.mark.parametrize("telemetry", otel.CHOICES)
def test_both_packages_implement_the_interface(telemetry: str, module: str) -> None:
    names = dir(import_module(f"otel.{telemetry}.{module}"))
    assert set(INTERFACE[module]) <= set(names)


@pytest.mark.parametrize(("environ", "expected"), [({}, "standard"), ({"TELEMETRY": "fast"}, "fast")])
def test_telemetry_variable_selects_the_package(environ: dict[str, str], expected: str) -> None:
    result = python("from otel import logs, metrics, traces; print(logs, metrics, traces)", **environ)
    assert re.findall(r"otel\.(\w+)\.\w+'", result.stdout) == [expected] * 3


def test_an_invalid_value_stops_the_start_with_one_line() -> None:
    result = python("import otel", TELEMETRY="slow")
    assert (result.returncode, result.stderr) == (2, "TELEMETRY='slow': must be one of standard, fast\n")


def test_a_missing_private_name_falls_back_to_standard_with_one_warning(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends at once
        port = str(taken.getsockname()[1])
        result = python(MOVED, TELEMETRY="fast", PORT=port, TRACES_FILE=str(tmp_path / "spans.jsonl"))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    (warning,) = [line["message"] for line in lines if line["level"] == "WARNING"]
    assert "TELEMETRY=fast is not possible: opentelemetry.context._RUNTIME_CONTEXT._current_context" in warning
    assert "standard is used" in warning
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def private_names(source: str) -> set[str]:
    """Names with one leading underscore that are imported, or looked up in an object of another package."""
    found = set()
    tree = ast.parse(source)
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in ("self", "span", "series")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {part for name in node.names for part in name.name.split(".") if re.match("_[a-z]", part)}
        elif isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
            base = node.value
            while isinstance(base, ast.Attribute | ast.Call):
                base = base.func if isinstance(base, ast.Call) else base.value
            if not (isinstance(base, ast.Name) and base.id in own | {"super"}):
                found.add(node.attr)
    return found


def test_private_names_exist_and_are_only_in_the_table() -> None:
    assert private.missing() is None
    assert private_names("from x import _a\nself.b._c\nz()._d.e") == {"_a", "_d"}
    allowed = {"_value_"}  # documented: https://docs.python.org/3/library/enum.html#supported-sunder-names
    for package in otel.CHOICES:
        for path in (ROOT / "otel" / package).glob("*.py"):
            assert private_names(path.read_text()) <= allowed, path


def test_only_otel_imports_one_of_the_two_packages() -> None:
    for folder in ("bench", "dieservice", "frontend", "lab", "roller", "web"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"otel\.(standard|fast)\b", path.read_text()), path
    for path in (*(ROOT / "otel").glob("*.py"), *(ROOT / "otel" / "standard").glob("*.py")):
        if path.name != "__init__.py":
            assert "otel.fast" not in path.read_text(), path
