"""``dicelab compare``: rolls one after the other against the same number at once, and how much faster that is."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from rich.console import Console
from rich.table import Table

from lab import LabError
from lab import client as running
from lab.client import Running
from lab.load import generator as load
from lab.load.generator import Answer, Client
from lab.load.statistics import ratio_of_means
from otel import logs

DEFAULT_DELAY = 1.0  # seconds, a service's own default

_line = logs.events(running.SERVICE)


@dataclass(frozen=True)
class Run:
    """One side of a round: how long it took, and what went wrong, if anything did."""

    seconds: float
    failures: tuple[Answer, ...]


def expected_speedup(rolls: int) -> float:
    """How much faster ``rolls`` at once are, where each waits a uniform random time from 0 to d.

    One after the other their waits add up, to ``rolls · d / 2`` on average; at once the longest of them counts,
    which is ``d · rolls / (rolls + 1)`` on average.
    """
    return (rolls + 1) / 2


async def _one_by_one(client: Client, url: str, die: str, rolls: int) -> Run:
    started = time.monotonic()
    # To the end even when one fails, as a batch does.
    answers = [await client.ask(url, "/roll", {"die": die}, attributes={"die.type": die}) for _ in range(rolls)]
    return Run(time.monotonic() - started, tuple(answer for answer in answers if answer.failed))


async def _at_once(client: Client, url: str, die: str, rolls: int) -> Run:
    started = time.monotonic()
    answer = await client.ask(url, "/roll-async", {"die": die, "times": str(rolls)}, attributes={"die.type": die})
    return Run(time.monotonic() - started, (answer,) if answer.failed else ())


async def _run(args: argparse.Namespace, there: Running) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    chance = random.Random(seed)
    sides = {"sequential": _one_by_one, "async": _at_once}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    async with Client(args.timeout) as client, load.stoppable() as stop:
        with suppress_http_instrumentation():
            face = await running.face(client.session, there.url)
        if not face.max_times:
            raise LabError(f"the {face.name} at {there.url} has no /roll-async to compare; stage 4 has")
        if args.times > face.max_times:
            raise LabError(f"--times {args.times}: a batch there has {face.max_times} rolls at the most")
        _line(logging.INFO, "Comparison started", url=there.url, die=args.die, rounds=args.rounds, seed=seed)
        # The first of anything pays for connections and imports: one round is not counted.
        for side in sides.values():
            await side(client, there.url, args.die, 1)
        async with load.shown(
            "compare", lambda: f"{len(runs['async'])} of {args.rounds} rounds", lambda: len(runs["async"]) / args.rounds
        ):
            for _ in range(args.rounds):
                # In random order, so that what drifts or comes after a pause favours neither.
                round_: dict[str, Run] = {}
                for name in chance.sample(sorted(sides), 2):
                    round_[name] = await sides[name](client, there.url, args.die, args.times)
                for name, run in round_.items():
                    runs[name].append(run)
                if stop.is_set():
                    break
    summary = _summary(args, there, seed, runs, stop.is_set())
    _line(
        logging.INFO,
        "Comparison done",
        rounds=summary["rounds"],
        compared=summary["compared"],
        speedup=summary["speedup"]["measured"] if summary["speedup"] else None,
    )
    return summary


def _summary(
    args: argparse.Namespace, there: Running, seed: int, runs: dict[str, list[Run]], interrupted: bool
) -> dict[str, Any]:
    pairs = [
        (one.seconds, batch.seconds)
        for one, batch in zip(runs["sequential"], runs["async"], strict=True)
        if not one.failures and not batch.failures
    ]
    means = {"sequential": args.times / 2, "async": args.times / (args.times + 1)}
    sides: dict[str, Any] = {}
    for index, (name, side) in enumerate(runs.items()):
        seconds = [pair[index] for pair in pairs]
        sides[name] = {
            "runs": len(side),
            "failed": sum(bool(run.failures) for run in side),
            "failures": load.told(answer for run in side for answer in run.failures),
            "seconds": {
                "mean": round(fmean(seconds), 4) if seconds else None,
                "stdev": round(stdev(seconds), 4) if len(seconds) > 1 else None,
                "min": round(min(seconds), 4) if seconds else None,
                "max": round(max(seconds), 4) if seconds else None,
                "expected": round(means[name] * args.delay, 4),
            },
        }
    speedup = None
    if pairs:
        ratio = ratio_of_means([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        expected = expected_speedup(args.times) if args.delay else None
        bounds = None if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
        speedup = {
            "measured": round(ratio.value, 3),
            "confidence_interval_95": bounds and [round(bound, 3) for bound in bounds],
            "expected": expected,
            "as_expected": bounds and expected and bounds[0] <= expected <= bounds[1],
        }
    return {
        "url": there.url,
        "die": args.die,
        "times": args.times,
        "delay": args.delay,
        "seed": seed,
        "interrupted": interrupted,
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
    console.print(table)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if summary["interrupted"]:
        say("Interrupted: this is what there was until then.", "yellow")
    left_out = summary["rounds"] - summary["compared"]
    if left_out:
        say(f"{left_out} of {summary['rounds']} rounds failed on one side or both; times are of the others", "yellow")
    speedup = summary["speedup"]
    if speedup is None:
        say("No round came out on both sides: there is nothing to compare.", "red")
        return
    expected = f"expected {speedup['expected']:.1f}x" if speedup["expected"] else "no expectation: the dice do not wait"
    say(f"Async rolling is {speedup['measured']:.1f}x faster than sequential ({expected})", "bold")
    if speedup["confidence_interval_95"]:
        low, high = speedup["confidence_interval_95"]
        verdict = {True: ", which holds what was expected", False: ", which does not hold what was expected"}
        say(f"95 % confidence interval {low:.2f}x to {high:.2f}x{verdict.get(speedup['as_expected'], '')}")
    else:
        say("Too few rounds for a confidence interval")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns 0 when every run came out, else 1."""
    there = running.find(args.run_dir, args.url)
    if args.delay is None:
        args.delay = there.state.get("roll_delay", DEFAULT_DELAY)
    with running.telemetry(there):
        summary = asyncio.run(_run(args, there))
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 1 if any(side["failed"] for side in summary["sides"].values()) else 0
