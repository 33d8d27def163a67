"""Telemetry with deliberate mistakes, and Weaver, which compares telemetry with the registry.

Weaver and a copy of OpenTelemetry's semantic conventions are not part of this lab. Tests that need them are skipped
where ``weaver`` is not on PATH, or ``SEMANTIC_CONVENTIONS`` does not name the folder ``model`` of such a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.schema.registry import FOLDER
from lab.signals import Line, Span, parse_line

# --- deliberate mistakes ---

TRACE = "0" * 31 + "1"
HTTP = {
    "http.request.method": "GET",
    "http.route": "/roll",
    "http.response.status_code": 200,
    "url.scheme": "http",
    "url.path": "/roll",
    "url.query": "die=fair",
    "die.type": "fair",
    "die.result": 5,
}
RESOURCE = {
    "service.name": "dice-roller",
    "service.namespace": "dicelab",
    "service.instance.id": "00000000-0000-0000-0000-000000000000",
    "service.version": "0.1.0",
    "process.pid": 1,
    "dicelab.telemetry": "standard",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.version": "1.45.0",
}
EXCEPTION = {"exception.type": "RollFailed", "exception.message": "risky", "exception.stacktrace": "Traceback"}
ROLL: dict[str, Any] = {"die_type": "fair", "roll_value": 5}
PAGE = """\
# HELP dice_rolls Dice rolled.
# TYPE dice_rolls counter
dice_rolls_total{die_type="fair",result="success"} 3.0
# EOF
"""


def span(
    name: str = "GET /roll",
    kind: int = 2,
    attributes: dict[str, Any] = HTTP,
    exception: dict[str, Any] | None = None,
    resource: dict[str, Any] = RESOURCE,
    event: str = "exception",
) -> Span:
    events = [] if exception is None else [event]
    return Span(
        "dice-roller",
        name,
        TRACE,
        "1",
        "",
        kind,
        0,
        1,
        0,
        attributes,
        events,
        [exception or {}][: len(events)],
        resource,
    )


def line(message: str = "Roll completed", level: str = "INFO", /, **fields: Any) -> Line:
    always = {"timestamp": "2026-01-02T03:04:05.678Z", "level": level, "message": message, "logger": "dice-roller"}
    return parse_line(json.dumps(always | fields))


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


# The mistake; the telemetry; the finding; whether Weaver checks this too, and has the same finding.
MISTAKES: list[tuple[str, Span | Line | str, str, bool]] = [
    ("unknown attribute", span(attributes=HTTP | {"die.colour": "red"}), "missing_attribute", True),
    ("deprecated attribute", span(attributes=HTTP | {"http.method": "GET"}), "missing_attribute", True),
    ("attribute of another span", span(attributes=HTTP | {"async.roll_index": 1}), "unexpected_attribute", False),
    ("text for a number", span(attributes=HTTP | {"die.result": "5"}), "type_mismatch", True),
    ("truth for a number", span(attributes=HTTP | {"die.result": True}), "type_mismatch", True),
    ("number for text", span(attributes=HTTP | {"die.type": 6}), "type_mismatch", True),
    ("span without method", span(attributes=without(HTTP, "url.path")), "required_attribute_not_present", False),
    ("unknown span", span("shuffle", 1, {}), "missing_span", False),
    ("span of the wrong kind", span("GET /roll", 3), "missing_span", False),
    ("number in a name", span("roll 7 of fair", 1, {}), "high_cardinality_name", False),
    ("query in a name", span("GET /roll?die=fair"), "high_cardinality_name", False),
    ("value in a name", span("roll fair", 1, {"die.type": "fair"}), "high_cardinality_name", False),
    ("unknown span event", span(exception={}, event="shuffled"), "missing_event", False),
    ("exception.escaped", span(exception=EXCEPTION | {"exception.escaped": "False"}), "missing_attribute", True),
    (
        "exception without type",
        span(exception=without(EXCEPTION, "exception.type")),
        "required_attribute_not_present",
        False,
    ),
    ("unknown resource attribute", span(resource=RESOURCE | {"room": "fast"}), "missing_attribute", True),
    ("pid as text", span(resource=RESOURCE | {"process.pid": "1"}), "type_mismatch", True),
    (
        "resource without version",
        span(resource=without(RESOURCE, "service.version")),
        "required_attribute_not_present",
        False,
    ),
    ("unknown message", line("Roll vanished", **ROLL), "missing_event", True),
    ("unknown field", line(**ROLL, colour="red"), "missing_attribute", True),
    ("field as text", line(**ROLL | {"roll_value": "5"}), "type_mismatch", True),
    ("field missing", line(die_type="fair"), "required_attribute_not_present", True),
    ("wrong level", line("Roll completed", "ERROR", **ROLL), "unexpected_level", False),
    ("unknown metric", PAGE.replace("dice_rolls", "dice_thrown"), "missing_metric", True),
    ("gauge for a counter", PAGE.replace("counter", "gauge").replace("_total", ""), "unexpected_instrument", True),
    ("unknown label", PAGE.replace("{", '{colour="red",'), "missing_attribute", True),
    ("label missing", PAGE.replace(',result="success"', ""), "required_attribute_not_present", True),
    ("unknown value", PAGE.replace("success", "draw"), "undefined_enum_variant", True),
    (
        "too many values",
        PAGE.replace("# EOF\n", "".join(f'dice_rolls_total{{die_type="d{n}",result="error"}} 1\n' for n in range(200)))
        + "# EOF\n",
        "high_cardinality_label",
        False,
    ),
]


# --- Weaver ---


def needed() -> tuple[str, Path]:
    """The paths of Weaver and of the conventions' folder ``model``; skips the test if one of them is missing."""
    command, model = shutil.which("weaver"), os.environ.get("SEMANTIC_CONVENTIONS")
    if command is None:
        pytest.skip("weaver is not on PATH")
    if not model:
        pytest.skip("SEMANTIC_CONVENTIONS does not name a copy of the semantic conventions' folder model")
    return command, Path(model)


def local_registry(directory: Path) -> Path:
    """A copy of the registry that takes the conventions from ``SEMANTIC_CONVENTIONS`` instead of from GitHub."""
    _, model = needed()
    copy = directory / "registry"
    shutil.copytree(FOLDER, copy)
    manifest = yaml.safe_load((copy / "manifest.yaml").read_text())
    (dependency,) = manifest["dependencies"]
    assert yaml.safe_load((model / "manifest.yaml").read_text())["schema_url"] == dependency["schema_url"]
    dependency["registry_path"] = str(model)
    (copy / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return copy


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command, _ = needed()
    return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=110)


def live_check(registry: Path, samples: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """Weaver's report: the samples with its findings (see :func:`advice`)."""
    file = directory / "samples.json"
    file.write_text(json.dumps(samples))
    ended = run(
        *("registry", "live-check", "--registry", registry, "--input-source", file, "--input-format", "json"),
        *("--format", "json", "--no-stream", "--fail-on", "none", "--quiet"),
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    report: list[dict[str, Any]] = json.loads(ended.stdout)["samples"]
    assert len(report) == len(samples)
    return report


def advice(sample: Any) -> list[dict[str, Any]]:
    """All findings of a sample in a report, including those of its attributes and events."""
    if isinstance(sample, list):
        return [one for child in sample for one in advice(child)]
    if not isinstance(sample, dict):
        return []
    own = (sample.get("live_check_result") or {}).get("all_advice", [])
    return [*own, *(one for key, child in sample.items() if key != "live_check_result" for one in advice(child))]


def counted(report: list[dict[str, Any]], level: str) -> Counter[str]:
    """How often each finding of a level is in a report."""
    return Counter(one["id"] for one in advice(report) if one["level"] == level)
