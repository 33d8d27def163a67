"""Which engines a lab runs, and the variables of their configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lab.supervise import stages
from lab.supervise.engines_plan import EnginesPlan, plan_engines
from tests.support.configurations import CONFIGURATIONS, ELSEWHERE


def test_the_plan_depends_on_the_available_engines(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()

    def planned(stage: int) -> EnginesPlan:
        return plan_engines(stages.load(stage), 8000, tmp_path / "run", tmp_path / "logs", {"PATH": str(binaries)})

    def add(name: str) -> None:
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)

    def found(stage: int) -> list[str]:
        return [engine.name for engine, _ in planned(stage).found]

    assert planned(6).otlp_endpoint() is None
    add("otelcol")
    assert found(6) == ["exporter"]  # a collector without Tempo is useless
    add("tempo")
    assert planned(6).otlp_endpoint() == "http://127.0.0.1:8017"
    assert planned(6).otlp_endpoint("grpc") == "http://127.0.0.1:8016"
    (binaries / "otelcol").unlink()
    assert planned(6).otlp_endpoint() == "http://127.0.0.1:8015"
    assert planned(6).otlp_endpoint("grpc") == "http://127.0.0.1:8014"
    add("prometheus-postgres-exporter")
    assert found(4) == ["tempo"]
    assert found(5) == ["tempo", "postgres-exporter", "exporter"]
    assert [engine.name for engine in planned(5).missing] == ["prometheus", "otel-collector", "loki", "grafana"]
    add("alloy")
    assert not planned(6).has("alloy")  # it would have nowhere to send lines
    add("loki")
    assert planned(6).has("alloy")
    assert planned(5).variables("")["LOG_ROUTE"] == "all"
    assert planned(6).variables("")["LOG_ROUTE"] == "usage"


def test_every_variable_in_a_configuration_is_set(tmp_path: Path) -> None:
    given = plan_engines(stages.load(6), 8000, tmp_path, tmp_path, {"PATH": ""}).variables("postgresql:///x")
    named = set()
    for file, pattern in CONFIGURATIONS:
        here = set(re.findall(pattern, file.read_text()))
        assert here <= given.keys() | ELSEWHERE, file
        named |= here
    assert {"TEMPO_PORT", "LOKI_DATA", "COLLECTOR_HOST", "LOG_ROUTE", "GRAFANA_DATA", "PROMETHEUS_URL"} <= named
    assert "0.0.0.0" not in json.dumps(given)
