"""``dicelab cost``: rolls dice in the running lab, and measures the size of their telemetry."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lab.client import Lab
from lab.cost.agreement import Engines
from lab.cost.changes import Changes
from lab.cost.collect import Collector, roll
from lab.cost.measure import measure
from lab.cost.prices import Prices
from lab.cost.queries import Queries
from lab.cost.report import Report
from lab.terminal import progress

WIDTH = 150  # columns of the tables where no terminal says how many there are


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        requests: how many are sent.
        rolls_a_day: for the projection; ``None`` for the number in the price file.
        prices: the price file; ``None`` for the example.
        seed: of the random requests.
    """

    run_dir: Path
    requests: int = 200
    rolls_a_day: int | None = None
    prices: Path | None = None
    seed: int = 7
    json: bool = False


def run(options: Options, console: Console) -> int:
    """Measure, print the report, and leave it in the run dir, where the page finds it; returns 0.

    Raises:
        LabError: when no lab runs there, it does not respond, or the report cannot be written.
        InputError: when the price file is not valid.
    """
    prices = Prices.read(options.prices)
    if options.rolls_a_day is not None:
        prices = replace(prices, rolls_a_day=float(options.rolls_a_day))
    lab = Lab.in_run_dir(options.run_dir)
    report = asyncio.run(_report(lab, options, prices))
    document = report.document()
    lab.directory.write_cost_report(document)
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        if not console.is_terminal:
            console.width = WIDTH
        report.show(console)
    return 0


async def _report(lab: Lab, options: Options, prices: Prices) -> Report:
    queries = Queries.read()
    async with lab, progress("cost", lambda: "rolls, then waits until its telemetry has arrived", lambda: None):
        engines = await Engines.before(lab)
        collector = Collector(lab)
        sent = await roll(lab, options.requests, options.seed)
        observed = await collector.observe(sent)
        agreements = await engines.read(observed, collector)
    measured = measure(observed, queries)
    changes = Changes(observed, measured, queries, prices, bool(lab.sampling)).best()
    return Report(lab.stage, lab.sampling, sent, measured, changes, agreements, prices)
