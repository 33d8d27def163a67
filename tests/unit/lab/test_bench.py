"""The parts of ``dicelab bench`` that need no service."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import LabError
from lab.bench.load import read_wrk
from lab.bench.scale import advice, drop_limit, machine_limit, sustained_rate
from lab.bench.variants import path_variants, signal_variants
from lab.cli import main


def test_output_of_wrk_is_parsed() -> None:
    out = """Running 3s test @ http://127.0.0.1:8000/roll
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    69.60ms   37.69ms 297.82ms   67.74%
  Latency Distribution
     50%  730.00us
     75%   92.44ms
     90%    1.12s\x20
     99%    1.73s\x20
  7461 requests in 3.01s, 1.42MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 5
Requests/sec:    931.69
"""
    assert read_wrk(out) == {"requests": 7461, "seconds": 3.01, "failed": 8, "p50": 0.73, "p99": 1730.0}


def test_an_unknown_measurement_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "everything"]) == 2
    assert "not everything" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_reported_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[object] = []
    monkeypatch.setattr("lab.bench.command.EmbeddedPostgres", lambda *given, **options: measured.append(given))
    assert main(["bench", "paths", "--json", str(tmp_path / "nosuch" / "file")]) == 1
    assert capsys.readouterr().err == f"dicelab: {tmp_path}/nosuch/file: No such file or directory\n"
    assert main(["bench", "paths", "--json", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert not measured


@pytest.mark.parametrize(
    ("option", "value"), [("--seconds", "-1"), ("--rounds", "0"), ("--clients", "0"), ("--minutes", "nan")]
)
def test_values_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert main(["bench", "signals", option, value]) == 2
    assert f"Invalid value for '{option}': {value} is not from" in capsys.readouterr().err


def test_drop_limit_is_the_lowest_rate_with_drops() -> None:
    rates = [(3_000.0, 0.0), (20_000.0, 0.0), (48_000.0, 73_000.0), (60_000.0, 920.0)]
    assert drop_limit(rates) == (
        "spans or lines are dropped from 48,000 rolls/s on, 73,920 in all; up to 20,000 rolls/s none"
    )
    assert drop_limit(rates[:2]) == ""
    # A rate with drops is the limit even if a higher one happened to drop nothing.
    assert "from 3,000 rolls/s on" in drop_limit([(3_000.0, 1.0), (20_000.0, 0.0)])
    assert "up to 0 rolls/s" in drop_limit([(3_000.0, 1.0), (20_000.0, 0.0)])


def test_the_sustained_rate_leaves_out_the_burst_at_the_start() -> None:
    counted = [(0.1, 900.0), (1.1, 1_000.0), (2.1, 1_500.0), (3.1, 2_200.0)]
    assert sustained_rate(counted, after=1.0) == pytest.approx(600)
    assert sustained_rate(counted, after=2.0) == pytest.approx(700)
    with pytest.raises(LabError, match="too busy to answer two scrapes"):
        sustained_rate(counted, after=3.0)


def test_all_packages_are_compared_unless_one_is_chosen() -> None:
    assert [variant.name for variant in path_variants()] == [
        "no telemetry",
        "standard",
        "fast",
        "standard, over OTLP",
        "fast, over OTLP",
    ]
    assert [variant.name for variant in path_variants(["fast"])] == ["no telemetry", "fast", "fast, over OTLP"]
    names = {variant.name for variant in signal_variants()}
    assert len(names) == len(signal_variants()) == 11
    assert names == {variant.name for which in ("standard", "fast") for variant in signal_variants([which])}


def test_the_fast_package_is_recommended_if_the_standard_one_does_not_keep_up() -> None:
    assert "fast is not needed" in advice({"standard": 0.98, "fast": 1.0})
    assert "1.50 times as many rolls as standard" in advice({"standard": 0.6, "fast": 0.9})


def test_a_machine_that_is_too_slow_without_telemetry_is_reported() -> None:
    assert machine_limit(0.98) == ""
    assert "sustains 70.0% of the possible rolls without telemetry" in machine_limit(0.7)
