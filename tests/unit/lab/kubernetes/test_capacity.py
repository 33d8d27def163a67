"""The capacity in docs/kubernetes.md, which ``lab.kubernetes.capacity`` computes."""

from __future__ import annotations

import pytest
import yaml

from lab.kubernetes import capacity, kustomize
from lab.paths import ROOT

DOCS = (ROOT / "docs" / "kubernetes.md").read_text()


def test_the_tables_in_the_docs_are_those_that_are_computed() -> None:
    assert capacity.table() in DOCS
    assert capacity.limits_table() in DOCS


def test_figures_equal_those_of_their_sources() -> None:
    scaling = yaml.safe_load_all((kustomize.DIRECTORY / "base/dice-roller/scaling.yaml").read_text())
    spec = next(one["spec"] for one in scaling if one["kind"] == "HorizontalPodAutoscaler")
    assert spec["metrics"][0]["resource"]["target"]["averageValue"] == f"{capacity.TARGET_LOAD * 1000:.0f}m"
    assert spec["minReplicas"] == capacity.MIN_PODS
    for figure in (capacity.LINE_BYTES, capacity.LINE_BYTES_STORED, capacity.SPAN_BYTES, capacity.SPAN_BYTES_STORED):
        assert f"| {figure:,} |" in DOCS
    performance = (ROOT / "docs" / "performance.md").read_text()
    rolls = performance.split("**`/roll?die=fair`**")[1].split("**`")[0]
    for telemetry, seconds in capacity.ROLL_CPU.items():
        (row,) = [line for line in rolls.splitlines() if line.startswith(f"| {telemetry}, over OTLP |")]
        assert f"| {seconds * 1e6:,.0f} |" in row
    collectors = (kustomize.DIRECTORY / "engines" / "large" / "collectors.yaml").read_text()
    assert f"sampling_percentage: {capacity.SAMPLED * 100:.0f}" in collectors
    for service, series in capacity.SERIES.items():
        assert f"{series} of a {service}" in DOCS
    assert capacity.ENGINE_SERIES + sum(capacity.SERIES.values()) == 5_402


def test_needs_grow_with_users_from_the_least() -> None:
    assert capacity.rolls(30) == pytest.approx(3)
    assert capacity.pods(1, "standard") == 2
    # 10,000 rolls a second of 0.947 ms, at 0.7 of a CPU each.
    assert capacity.pods(100_000, "standard") == 14
    assert capacity.frontends(100_000) == 93
    assert capacity.pages(101) == 2
    # 10,000 rolls a second for a day of 2,705 bytes.
    assert capacity.stored(100_000, capacity.LINE_BYTES, 1) == pytest.approx(2337.12)
    assert capacity.tempo(100_000, 1) == "3 + 5 + 18"
    assert capacity.limits()["Loki in one process"] == 855
