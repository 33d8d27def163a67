"""``dicelab compare``: measures how much faster a batch is than the same number of rolls one after the other."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from lab import LabError, telemetry
from lab.client import Lab
from lab.load.generator import Client, Response, summarized
from lab.load.report import show_failures
from lab.load.statistics import expected_speedup, ratio_of_means
from lab.load.users import check_known, dice_of
from lab.terminal import print_table, progress, say
from lab.waiting import stop_signal
from otel import logs

DEFAULT_DELAY = 1.0  # seconds, the services' default

_log = logs.events(telemetry.SERVICE)


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        url: the URL of a lab; ``None`` for the lab in the run dir.
        times: rolls in each run.
        rounds: runs of each side.
        delay: the longest wait of a roll, in seconds; ``None`` for that of the lab in the run dir.
        timeout: seconds for one request.
    """

    run_dir: Path
    url: str | None
    die: str
    times: int
    rounds: int
    delay: float | None
    seed: int | None
    timeout: float
    json: bool


@dataclass(frozen=True)
class Run:
    """One side of a round, sequential or batch: its duration and the requests that failed."""

    seconds: float
    failures: tuple[Response, ...]


async def _one_by_one(client: Client, url: str, die: str, rolls: int) -> Run:
    started = time.monotonic()
    # Even if one fails the others follow, as in a batch.
    responses = [await client.ask(url, "/roll", {"die": die}, attributes={"die.type": die}) for _ in range(rolls)]
    return Run(time.monotonic() - started, tuple(response for response in responses if response.failed))


async def _at_once(client: Client, url: str, die: str, rolls: int) -> Run:
    started = time.monotonic()
    response = await client.ask(url, "/roll-async", {"die": die, "times": str(rolls)}, attributes={"die.type": die})
    return Run(time.monotonic() - started, (response,) if response.failed else ())


async def _run(options: Options, lab: Lab) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    chance = random.Random(seed)
    sides = {"sequential": _one_by_one, "async": _at_once}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    async with lab, Client(options.timeout) as client, stop_signal() as stop:
        capabilities = await lab.fetch_capabilities()
        if not capabilities.max_times:
            raise LabError(f"the {capabilities.title} at {lab.front} has no /roll-async to compare; stage 4 has")
        if options.times > capabilities.max_times:
            raise LabError(f"--times {options.times}: a batch has at most {capabilities.max_times} rolls there")
        check_known([options.die], await dice_of(lab, capabilities), lab)
        _log(logging.INFO, "Comparison started", url=lab.front, die=options.die, rounds=options.rounds, seed=seed)
        # Warm up: the first request of each kind takes longer, because of connections and imports.
        for side in sides.values():
            await side(client, lab.front, options.die, 1)
        async with progress(
            "compare",
            lambda: f"{len(runs['async'])} of {options.rounds} rounds",
            lambda: len(runs["async"]) / options.rounds,
        ):
            for _ in range(options.rounds):
                # In random order, so that drift and pauses favour neither side.
                round_: dict[str, Run] = {}
                for name in chance.sample(sorted(sides), 2):
                    round_[name] = await sides[name](client, lab.front, options.die, options.times)
                for name, run in round_.items():
                    runs[name].append(run)
                if stop.is_set():
                    break
    delay = lab.state.get("roll_delay", DEFAULT_DELAY) if options.delay is None else options.delay
    summary = _summary(options, lab.front, delay, seed, runs) | {"interrupted": stop.is_set()}
    _log(
        logging.INFO,
        "Comparison done",
        rounds=summary["rounds"],
        compared=summary["compared"],
        speedup=summary["speedup"]["measured"] if summary["speedup"] else None,
    )
    return summary


def _summary(options: Options, url: str, delay: float, seed: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    pairs = [
        (one.seconds, batch.seconds)
        for one, batch in zip(runs["sequential"], runs["async"], strict=True)
        if not one.failures and not batch.failures
    ]
    means = {"sequential": options.times / 2, "async": options.times / (options.times + 1)}
    sides: dict[str, Any] = {}
    for index, (name, side) in enumerate(runs.items()):
        seconds = [pair[index] for pair in pairs]
        sides[name] = {
            "runs": len(side),
            "failed": sum(bool(run.failures) for run in side),
            "failures": summarized(response for run in side for response in run.failures),
            "seconds": {
                "mean": round(fmean(seconds), 4) if seconds else None,
                "stdev": round(stdev(seconds), 4) if len(seconds) > 1 else None,
                "min": round(min(seconds), 4) if seconds else None,
                "max": round(max(seconds), 4) if seconds else None,
                "expected": round(means[name] * delay, 4),
            },
        }
    speedup = None
    if pairs:
        ratio = ratio_of_means([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        expected = expected_speedup(options.times) if delay else None
        bounds = None if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
        speedup = {
            "measured": round(ratio.value, 3),
            "confidence_interval_95": bounds and [round(bound, 3) for bound in bounds],
            "expected": expected,
            "as_expected": bounds and expected and bounds[0] <= expected <= bounds[1],
        }
    return {
        "url": url,
        "die": options.die,
        "times": options.times,
        "delay": delay,
        "seed": seed,
        "rounds": len(runs["async"]),
        "compared": len(pairs),
        "sides": sides,
        "speedup": speedup,
    }


def _show(summary: dict[str, Any], console: Console) -> None:
    table = Table("", "runs", "failed", "mean, s", "± stdev", "min", "max", "expected")
    for name, side in summary["sides"].items():
        what = f"{summary['times']} × /roll" if name == "sequential" else "/roll-async"  # noqa: RUF001
        seconds = ("-" if value is None else f"{value:.3f}" for value in side["seconds"].values())
        table.add_row(what, str(side["runs"]), str(side["failed"]), *seconds)
    print_table(console, table)
    if summary["interrupted"]:
        say(console, "Interrupted: these are the results until then.", "yellow")
    left_out = summary["rounds"] - summary["compared"]
    if left_out:
        say(
            console,
            f"{left_out} of {summary['rounds']} rounds failed on at least one side; the times are of the others",
            "yellow",
        )
    for side in summary["sides"].values():
        show_failures(side["failures"], len(side["failures"]), console)
    speedup = summary["speedup"]
    if speedup is None:
        say(console, "No round succeeded on both sides: there is nothing to compare.", "red")
        return
    expected = f"expected {speedup['expected']:.1f}x" if speedup["expected"] else "no expectation: the dice do not wait"
    say(console, f"Async rolling is {speedup['measured']:.1f}x faster than sequential ({expected})", "bold")
    if speedup["confidence_interval_95"]:
        low, high = speedup["confidence_interval_95"]
        verdict = {True: ", which contains the expected value", False: ", which does not contain the expected value"}
        say(console, f"95 % confidence interval {low:.2f}x to {high:.2f}x{verdict.get(speedup['as_expected'], '')}")
    else:
        say(console, "Too few rounds for a confidence interval")


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 if every request succeeded, else 1."""
    lab = Lab.find(options.run_dir, options.url)
    lab.timeout = options.timeout
    with telemetry.recorded(lab):
        summary = asyncio.run(_run(options, lab))
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 1 if any(side["failed"] for side in summary["sides"].values()) else 0
