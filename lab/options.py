"""The options of the experiments' commands. What they run is imported only when it is asked for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module

from rich.console import Console

PROFILES = ("steady", "ramp", "spike", "day")
EXPERIMENTS = (
    "database-down",
    "database-slow",
    "die-service-down",
    "die-service-slow",
    "collector-down",
    "pool-exhausted",
    "roller-killed",
)
MAX_USERS = 5000


def number_between(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also refuses NaN
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}{unit}")
        return value

    return number


def count_between(low: int, high: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return count


PROBABILITY = number_between(0.0, 1.0)
DURATION = number_between(0.1, 7 * 24 * 3600, " seconds")
RATE = number_between(0.1, 100_000, " a second")
PATIENCE = number_between(0.1, 600, " seconds")


def _dice(text: str) -> dict[str, float]:
    """``fair=3,risky`` as proportions."""
    dice: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.partition("=")
        value = float(share) if equals else 1.0
        if not name or not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{part!r} is no die with a proportion above 0, such as fair=3")
        dice[name] = value
    return dice


def _ratio(text: str) -> tuple[float, float]:
    """``1:4`` as two numbers."""
    first, colon, second = text.partition(":")
    lists, gets = float(first), float(second or "nan")
    if not colon or not (0 <= lists < math.inf and 0 <= gets < math.inf and lists + gets > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio such as 1:4")
    return lists, gets


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL such as http://127.0.0.1:8002")
    return text.rstrip("/")


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; the arguments of each have ``run(args, console)``."""
    traffic = commands.add_parser("traffic", help="let users roll dice, and sum up what they got", allow_abbrev=False)
    traffic.add_argument(
        "--users", type=count_between(1, MAX_USERS), default=5, metavar="N", help="at once (default 5)"
    )
    traffic.add_argument(
        "--max-rolls", type=count_between(1, 1_000_000), metavar="N", help="a user rolls 1 to N times (default 10)"
    )
    traffic.add_argument(
        "--die", type=_dice, metavar="MIX", help="dice and their proportions, such as fair=3,risky=1 (default: all)"
    )
    traffic.add_argument(
        "--async-probability", type=PROBABILITY, metavar="P", help="how often many are rolled at once (default 0.2)"
    )
    traffic.add_argument(
        "--max-async-rolls", type=count_between(1, 10_000), metavar="N", help="1 to N rolls at once (default 10)"
    )
    traffic.add_argument(
        "--think-time", type=number_between(0, 3600, " seconds"), metavar="SECONDS", help="between rolls (default 0.5)"
    )
    traffic.add_argument(
        "--duration",
        type=DURATION,
        metavar="SECONDS",
        help="new users come until then (default: until each has rolled; 60 with --rate or --profile)",
    )
    traffic.add_argument(
        "--rate", type=RATE, metavar="N", help="N rolls a second, whether earlier ones are answered or not"
    )
    traffic.add_argument(
        "--profile", choices=PROFILES, default="steady", help="how the load changes over the duration (default steady)"
    )
    traffic.add_argument("--anonymous", action="store_true", help="do not sign in where that can be done")

    compare = commands.add_parser(
        "compare", help="rolls one after the other against as many at once", allow_abbrev=False
    )
    compare.add_argument("--die", default="fair", metavar="NAME", help="which die (default fair)")
    compare.add_argument(
        "--times", type=count_between(2, 10_000), default=10, metavar="N", help="rolls a run (default 10)"
    )
    compare.add_argument(
        "--rounds", type=count_between(1, 10_000), default=10, metavar="N", help="runs a side (default 10)"
    )
    compare.add_argument(
        "--delay",
        type=number_between(0, 60, " seconds"),
        metavar="SECONDS",
        help="the lab's ROLL_DELAY, for the expectation (default: that of the run dir's lab, else 1)",
    )

    load_db = commands.add_parser("load-db", help="queries at a rate against the die-service", allow_abbrev=False)
    load_db.add_argument("--rate", type=RATE, default=50.0, metavar="N", help="queries a second (default 50)")
    load_db.add_argument("--duration", type=DURATION, default=10.0, metavar="SECONDS", help="how long (default 10)")
    load_db.add_argument(
        "--ratio", type=_ratio, default=(1.0, 4.0), metavar="LIST:GET", help="lists to single dice (default 1:4)"
    )

    chaos = commands.add_parser("chaos", help="break the lab in one way, and check what shows", allow_abbrev=False)
    chaos.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    chaos.add_argument("--compose", action="store_true", help="the lab in containers, by docker or podman")
    chaos.add_argument("--rate", type=RATE, default=50.0, metavar="N", help="rolls a second meanwhile (default 50)")
    for phase, default, what in (
        ("steady", 5.0, "before the fault"),
        ("fault", 20.0, "with it"),
        ("recovery", 30.0, "at the most until all is well again"),
    ):
        chaos.add_argument(
            f"--{phase}", type=DURATION, default=default, metavar="SECONDS", help=f"{what} (default {default:g})"
        )

    for name, module in (
        ("traffic", "load.traffic"),
        ("compare", "load.compare"),
        ("load-db", "load.load_db"),
        ("chaos", "chaos.command"),
    ):
        command = commands.choices[name]
        if name != "chaos":
            command.add_argument("--url", type=_url, help="which lab (default: the one of the run dir)")
        command.add_argument("--seed", type=int, metavar="N", help="makes what is asked, and its order, repeatable")
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument(
            "--timeout", type=PATIENCE, default=30.0, metavar="SECONDS", help="patience with an answer (default 30)"
        )
        command.set_defaults(run=_runner(f"lab.{module}"))


def _runner(module: str) -> Callable[[argparse.Namespace, Console], int]:
    def run(args: argparse.Namespace, console: Console) -> int:
        command = import_module(module)
        options = command.Options(**{field.name: getattr(args, field.name) for field in fields(command.Options)})
        status: int = command.run(options, console)
        return status

    return run
