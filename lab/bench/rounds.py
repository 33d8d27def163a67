"""``dicelab bench signals`` and ``paths``: rounds in which every variant is loaded."""

from __future__ import annotations

import contextlib
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lab.bench.options import Options
from lab.bench.testbed import Deployment, Run, Testbed, machine
from lab.bench.variants import BARE, BATCH_CLIENTS, PATHS, ROLL, Variant, path_variants, signal_variants


async def measure_signals(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    """Load each signal alone and all of them together.

    Prints tables, adds what went wrong to ``faults``, and returns the runs as ``--json`` writes them.
    """
    variants = signal_variants(args.packages)
    runs = await _rounds(testbed, variants, (ROLL,), args, faults)
    rows = _table(f"{ROLL}, {args.clients} clients, {args.rounds} rounds of {args.seconds:g} s", console)
    for variant in variants:
        _row(rows, variant.name, runs[variant.name, ROLL], runs[BARE.name, ROLL])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def measure_paths(args: Options, console: Console, testbed: Testbed, faults: list[str]) -> list[dict[str, Any]]:
    """Load each path, over files and over OTLP.

    Prints tables, adds what went wrong to ``faults``, and returns the runs as ``--json`` writes them.
    """
    variants = path_variants(args.packages)
    runs = await _rounds(testbed, variants, PATHS, args, faults)
    title = f"With and without telemetry, {args.clients} clients, for batches at most {BATCH_CLIENTS}"
    rows = _table(title, console)
    for path in PATHS:
        rows.add_row(path, style="bold")
        for variant in variants:
            _row(rows, f"  {variant.name}", runs[variant.name, path], runs[BARE.name, path])
    console.print(rows)
    return [asdict(run) for group in runs.values() for run in group]


async def _rounds(
    testbed: Testbed, variants: Sequence[Variant], paths: Sequence[str], args: Options, faults: list[str]
) -> dict[tuple[str, str], list[Run]]:
    """Load each variant on each path once a round; returns their runs."""
    # With more clients, batches of a hundred would not complete within a round.
    clients = {path: min(args.clients, BATCH_CLIENTS) if "times=" in path else args.clients for path in paths}
    runs: dict[tuple[str, str], list[Run]] = {(variant.name, path): [] for variant in variants for path in paths}
    shuffled = random.Random(0)
    async with contextlib.AsyncExitStack() as stack:
        # One after the other: started together, each would take too long.
        deployments = [await stack.enter_async_context(Deployment(testbed, variant)) for variant in variants]
        for one in deployments:  # warm up: connections, caches
            for path in paths:
                await one.run(path, clients[path], min(1, args.seconds))
        for _ in range(args.rounds):
            for path in paths:
                for one in shuffled.sample(deployments, len(deployments)):
                    run = await one.run(path, clients[path], args.seconds)
                    runs[one.variant.name, path].append(run)
                    if run.failed:
                        faults.append(f"{one.variant.name}: {run.failed} requests to {path} failed")
        for one in deployments:
            if dropped := await one.dropped():
                faults.append(f"{one.variant.name}: {dropped:g} spans or lines were dropped")
            for path in paths:
                for run in runs[one.variant.name, path]:
                    run.memory = one.memory()
    return runs


def _table(title: str, console: Console) -> Table:
    rows = Table(title=f"{title}. {machine()}", title_justify="left", box=SIMPLE_HEAD)
    rows.add_column("", no_wrap=True)
    for column in ("req/s", "ratio", "by CPU", "p50 ms", "p99 ms", "CPU µs", "roller", "die-s.", "postgres", "MB"):
        rows.add_column(column, justify="right")
    return rows


def _row(rows: Table, name: str, runs: Sequence[Run], bare: Sequence[Run]) -> None:
    """Add the medians of the runs, but the minimum of their CPU time: other work can only increase that."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    least = min(runs, key=lambda run: run.total)
    ratio = statistics.median(run.rate / other.rate for run, other in zip(runs, bare, strict=True))
    rows.add_row(
        name,
        f"{median(lambda run: run.rate):,.0f}",
        f"{ratio:.2f}",
        f"{min(run.total for run in bare) / least.total:.2f}",
        f"{median(lambda run: run.p50):.1f}",
        f"{median(lambda run: run.p99):.1f}",
        f"{least.total:.0f}",
        *(f"{least.cpu.get(process, 0):.0f}" for process in ("dice-roller", "die-service", "postgres")),
        f"{sum(runs[-1].memory.values()):.0f}",
    )
