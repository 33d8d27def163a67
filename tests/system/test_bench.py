"""``dicelab bench``: every variant responds, nothing is dropped, the figures are complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lab.bench.scale import MANY_CLIENTS
from lab.bench.variants import signal_variants
from tests.support.labs import clean_environ, processes_of, wait_for

pytestmark = pytest.mark.usefixtures("high_priority")


def measured(
    tmp_path: Path, *arguments: str, seconds: float = 0.2
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A short ``bench``: its exit status, output and figures."""
    # A PATH without wrk, which would need a second for each run.
    tools = tmp_path / "bin"
    tools.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for tool in Path(directory).iterdir() if Path(directory).is_dir() else ():
            if tool.name != "wrk" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    figures = tmp_path / "figures.json"
    short = Path(tempfile.mkdtemp(prefix="b"))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "lab.cli", "bench", *arguments),
            *("--rounds", "1", "--seconds", str(seconds), "--clients", "4", "--json", str(figures)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environ(PATH=str(tools), TMPDIR=str(short)),
        timeout=220,
    )
    assert figures.exists(), result.stdout + result.stderr
    assert "…" not in result.stdout  # without a terminal nothing is cut off
    assert not list(short.glob("dicelab-bench-*"))  # cleaned up
    shutil.rmtree(short)
    return result, json.loads(figures.read_text())


@pytest.mark.timeout(240)
def test_paths_are_measured_against_no_telemetry(tmp_path: Path) -> None:
    result, document = measured(tmp_path, "paths", "--telemetry", "fast")
    assert result.returncode == 0, result.stdout + result.stderr
    assert document["faults"] == []
    assert document["load"] == "bench.load"
    paths = document["paths"]
    assert list(dict.fromkeys(run["variant"] for run in paths)) == ["no telemetry", "fast", "fast, over OTLP"]
    assert len({(run["variant"], run["path"]) for run in paths}) == len(paths) == 12
    complete(paths)
    assert "fast, over OTLP" in result.stdout


@pytest.mark.timeout(240)
def test_signals_are_measured_alone_and_together(tmp_path: Path) -> None:
    result, document = measured(tmp_path, "signals", "--telemetry", "standard")
    assert result.returncode == 0, result.stdout + result.stderr
    assert document["faults"] == []
    signals = document["signals"]
    assert [run["variant"] for run in signals] == [variant.name for variant in signal_variants(["standard"])]
    complete(signals)


def complete(runs: list[dict[str, Any]]) -> None:
    """Each run has its figures, and no request failed."""
    for run in runs:
        assert run["requests"] > 0
        assert run["failed"] == 0
        assert 0 < run["p50"] <= run["p99"]
        assert run["memory"]["dice-roller"] > 20


@pytest.mark.timeout(240)
def test_scale_is_measured(tmp_path: Path) -> None:
    result, document = measured(tmp_path, "scale", "--telemetry", "fast", "--minutes", "0.01", seconds=0.4)
    assert [run["variant"] for run in document["scale"]] == ["no telemetry"] * 2 + ["fast"] * 15
    bare_few, bare_crowd, few, crowd, *others = document["scale"]
    assert few["clients"] == bare_few["clients"] == 4
    # A busy machine may refuse some of a thousand concurrent requests. With the delay that is reported as a fault;
    # without it, that many clients may be refused.
    failed = [run for run in document["scale"] if run["failed"]]
    assert all(run["clients"] == MANY_CLIENTS for run in failed), failed
    reported = [run for run in failed if "sustained" in run]  # only runs with the delay have it
    assert len(document["faults"]) == len(reported), document["faults"]
    assert result.returncode == bool(reported), result.stdout + result.stderr
    for run in (bare_crowd, crowd):
        assert run["clients"] == MANY_CLIENTS
        assert run["p50"] > 250 or run["failed"]  # the delay is real; a refused request has none
        # Two ways to measure the same rolls; the first rolls start at the same time.
        served = run["rate"] * (1 - run["failed"] / run["requests"])
        assert served / 2 < run["sustained"] < served * 2
    for run in (bare_few, few):
        assert run["p50"] > 100  # without the delay, so few clients wait some milliseconds
    for run in (bare_few, bare_crowd, few, crowd):
        assert run["counted"] >= run["requests"] - run["failed"]  # the service counts what the client counts
        assert run["scrape_ms"] > 0
    for run in (bare_few, few):
        # And up to three rolls that each connection does not count: one in flight at the beginning, one at the end, and
        # one that is served while other connections are being opened.
        assert run["counted"] <= run["requests"] + 3 * run["clients"]
    assert [run["rolls"] for run in others] == [1, 2, 5, 10, 20, 50, 100] + [1] * 6
    assert [run["clients"] for run in others[7:]] == [8, 64, 256, MANY_CLIENTS, 4, 4]
    assert others[-1]["resident_mb"] > 50


@pytest.mark.parametrize("end", ["stopped", "without a service"])
def test_an_interrupted_bench_reports_it_and_cleans_up(end: str) -> None:
    short = Path(tempfile.mkdtemp(prefix="b"))
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.cli", "bench", "paths", "--rounds", "1000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environ(TMPDIR=str(short)),
    )
    try:
        wait_for(lambda: len(list(short.glob("dicelab-bench-*/tmp*/*.spans"))) >= 2, say="the services' spans")
        if end == "stopped":
            process.terminate()
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
            (service,) = (pid for pid, command in commands.items() if command.endswith("bench.reference\0roller\0"))
            os.kill(service, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()  # has no effect if it has ended
    assert process.returncode == 1
    if end == "stopped":
        assert said == "dicelab: interrupted before everything was measured\n"
    else:
        assert "dicelab: the dice-roller of 'no telemetry' has ended" in said
    assert not list(short.glob("dicelab-bench-*"))
    assert not processes_of(short)
    shutil.rmtree(short)
