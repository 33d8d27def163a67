"""The admission test of situations, for developers who add one::

    python -m lab.mystery record DIR [--run-dir DIR] [--only NAME]...   play each situation of this lab once
    python -m lab.mystery admit DIR...                                  the table of docs/mystery.md, from those cases

A situation is admitted when users notice it or it is telemetry-only, and when the mean scores of the baselines over all
cases are below the ceiling. The exit status is 1 where one is not admitted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from lab import LabError
from lab.client import Lab
from lab.mystery import command, files
from lab.mystery.baselines import CEILING, constants, three_sigma
from lab.mystery.plan import LEVELS, draw, possible
from lab.mystery.score import score
from lab.mystery.situations import SITUATIONS, Facets

STEADY, UNCERTAIN, FAULT = 30.0, 15.0, 36.0  # seconds
LEVEL = 1  # full strength and no decoys: the easiest level for a detector


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.mystery", description="Admit the situations of the game.")
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record")
    recording.add_argument("directory", type=Path)
    recording.add_argument("--run-dir", type=Path, default=Path(".dicelab"))
    recording.add_argument("--only", action="append", default=[], choices=[*SITUATIONS])
    admitting = actions.add_parser("admit")
    admitting.add_argument("directories", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    try:
        if given.action == "record":
            return asyncio.run(record(given.directory, given.run_dir, given.only))
        return admit([path for directory in given.directories for path in sorted(directory.iterdir())])
    except (LabError, OSError) as error:
        print(f"lab.mystery: {error}", file=sys.stderr)
        return 2


async def record(directory: Path, run_dir: Path, only: list[str]) -> int:
    """Record a case of each situation, each in a directory of its name."""
    facets = Facets.of(Lab.in_run_dir(run_dir))
    for number, name in enumerate(only or possible(facets, LEVELS[-1])):
        plan = draw(number + 1, LEVEL, facets, [name], STEADY, UNCERTAIN)
        files.prepare(directory / name)
        played = await command.record(Lab.in_run_dir(run_dir), plan, FAULT)
        if played is None:
            return 1
        command.write(directory / name, played)
        print(f"{name}: {played.indicators}", flush=True)
    return 0


def admit(directories: list[Path]) -> int:
    """Print the table; 0 when every situation is admitted."""
    recorded = [files.read(directory) for directory in directories]
    if not recorded:
        raise LabError("there is no case to admit")
    said, constant = constants(recorded)
    sigma = [score(one.case, one.truth, three_sigma(one.case, one.question["components"])) for one in recorded]
    print("| situation | component | users notice after | alert after | constant | three sigma |")
    print("|---|---|---|---|---|---|")
    admitted = True
    for one, fixed, detected in zip(recorded, constant, sigma, strict=True):
        name = one.truth.situation
        moved, only = one.indicators["moved"], all(SITUATIONS[part].telemetry_only for part in name.split("+"))
        admitted &= moved or only
        print(
            f"| {name} | {' and '.join(one.truth.components)} | {_noticed(one.indicators, only)}"
            f" | {_alerted(one.indicators)} | {fixed.total:g} | {detected.total:g} |"
        )
    means = mean(one.total for one in constant), mean(one.total for one in sigma)
    print(f"| mean | | | | {means[0]:.1f} | {means[1]:.1f} |")
    print(f"\nThe best constant answer: {said}")
    return 0 if admitted and max(means) < CEILING else 1


def _noticed(indicators: dict[str, object], telemetry_only: bool) -> str:
    seconds = indicators["noticed_seconds"]
    if telemetry_only:
        return "telemetry-only" if seconds is None and not indicators["moved"] else "telemetry-only, but noticed"
    if seconds is not None:
        return f"{seconds} s"
    return (
        "by the faces" if indicators["faces_wrong"] else "over the whole time" if indicators["moved"] else "not at all"
    )


def _alerted(indicators: dict[str, object]) -> str:
    alerts = indicators.get("alerts")
    if not isinstance(alerts, dict) or not alerts:
        return "none"
    name = min(alerts, key=lambda one: alerts[one])
    return f"{alerts[name]} s, {name}"


if __name__ == "__main__":
    sys.exit(main())
