"""The ``dicelab`` command line.

The module of each command is imported when the command runs. It has a dataclass ``Options``, whose fields are the
command's options, and a function ``run(options, console)``, which returns the exit status: 0 done, 1 failed.
"""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from lab import InputError, LabError, options
from lab.options import DELAY, DURATION, EXPERIMENTS, PROBABILITY, PROFILES, RATE, Dice, Number, Ratio, count
from lab.supervise.full_disk import FULL, discard_output

INTERRUPTED = 130  # exit status, as shells have it

STAGE = count(1, 6)

context = {"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(context_settings=context)
@click.version_option(package_name="dicelab")
def dicelab() -> None:
    """An observability lab small enough to understand."""


def _run(module: str, given: dict[str, Any]) -> int:
    gc.disable()  # collections during imports find next to nothing and take a fifth of the time
    from rich.console import Console

    command = import_module(f"lab.{module}")
    gc.freeze()
    gc.enable()
    status: int = command.run(command.Options(**given), Console())
    return status


@dicelab.command()
@click.option("--stage", type=STAGE, default=6, metavar="1..6", help="Which stage.")
@click.option(
    "--base-port", type=count(1, 65532), default=8000, metavar="PORT", help="The dice-roller's port; the others follow."
)
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="The address to listen on.")
@click.option("--roll-delay", type=DELAY, metavar="SECONDS", help="The longest a roll waits [default: 1]")
@click.option("--engines", is_flag=True, help="Also start Prometheus, Tempo and the other engines that are on PATH.")
@click.option("--workers", type=count(1, 64), default=1, metavar="N", help="Processes of dice-roller and die-service.")
@click.option("--telemetry", type=click.Choice(["standard", "fast"]), help="How the services are instrumented.")
@click.option("--sampling", type=click.Choice(["none", "tail"]), help="Which traces the Collector keeps.")
@click.option("--detach", is_flag=True, help="Return once the lab is ready, and leave it running.")
@click.option("--no-tail", is_flag=True, help="Do not follow the services' logs.")
@options.run_dir
def up(no_tail: bool, **given: Any) -> int:
    """Start a stage and follow its logs."""
    return _run("supervise.up", {**given, "tail": not no_tail})


@dicelab.command()
@click.option("--stage", type=STAGE, metavar="1..6", help="The stage to check against [default: the running one]")
@click.option("--timeout", type=DELAY, default=20.0, metavar="SECONDS", help="The time limit of one feature.")
@click.option("--compose", is_flag=True, help="Check the lab in containers, by docker or podman.")
@options.addresses
@click.option("--schema", is_flag=True, help="Instead compare the telemetry so far with otel/registry.")
@click.option(
    "--samples",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With --schema: also write the telemetry to FILE, for weaver registry live-check.",
)
@options.run_dir
def check(**given: Any) -> int:
    """Check whether every feature of the running stage works."""
    if given["samples"] and not given["schema"]:
        raise click.UsageError("--samples needs --schema")
    if given["addresses"] and (given["compose"] or given["schema"]):
        raise click.UsageError("--url cannot be combined with --compose or --schema")
    if (given["addresses"] or given["compose"]) and given["stage"] is None:
        raise click.UsageError("--url and --compose need --stage: the stage of such a lab is unknown")
    return _run("check", given)


@dicelab.command()
@click.option("--json", is_flag=True, help="Print the status as JSON.")
@options.run_dir
def status(**given: Any) -> int:
    """Show what runs and whether it is ready.

    Exit status: 0 all ready, 1 something is not, 3 nothing runs.
    """
    return _run("supervise.status", given)


@dicelab.command()
@options.run_dir
def down(**given: Any) -> int:
    """Stop the lab."""
    return _run("supervise.down", given)


@dicelab.command()
@click.option("--users", type=count(1, options.MAX_USERS), default=5, metavar="N", help="Concurrent users.")
@click.option("--max-rolls", type=count(1, 1_000_000), metavar="N", help="A user rolls 1 to N times [default: 10]")
@click.option("--die", type=Dice(), metavar="MIX", help="Dice and proportions, such as fair=3,risky=1 [default: all]")
@click.option(
    "--async-probability", type=PROBABILITY, metavar="P", help="The share of requests for a batch [default: 0.2]"
)
@click.option("--max-async-rolls", type=count(1, 10_000), metavar="N", help="A batch has 1 to N rolls [default: 10]")
@click.option(
    "--think-time", type=Number(0, 3600, " seconds"), metavar="SECONDS", help="Pause between rolls [default: 0.5]"
)
@click.option(
    "--duration",
    type=DURATION,
    metavar="SECONDS",
    help="New users arrive until then [default: until each has rolled; 60 with --rate or --profile]",
)
@click.option(
    "--rate", type=RATE, metavar="N", help="Start N rolls a second, whether earlier ones have completed or not."
)
@click.option(
    "--profile", type=click.Choice(PROFILES), default="steady", help="How the load changes over the duration."
)
@click.option("--anonymous", is_flag=True, help="Do not sign in.")
@options.url
@options.experiment
def traffic(**given: Any) -> int:
    """Simulate users who roll dice, and summarise the responses."""
    return _run("load.traffic", given)


@dicelab.command()
@click.option("--die", default="fair", metavar="NAME", help="Which die.")
@click.option("--times", type=count(2, 10_000), default=10, metavar="N", help="Rolls in each run.")
@click.option("--rounds", type=count(1, 10_000), default=10, metavar="N", help="Runs of each kind.")
@click.option(
    "--delay", type=DELAY, metavar="SECONDS", help="The lab's ROLL_DELAY [default: that of the run dir's lab, else 1]"
)
@options.url
@options.experiment
def compare(**given: Any) -> int:
    """Compare rolls one after the other with a batch of the same size."""
    return _run("load.compare", given)


@dicelab.command()
@click.option("--rate", type=RATE, default=50.0, metavar="N", help="Queries a second.")
@click.option("--duration", type=DURATION, default=10.0, metavar="SECONDS", help="Duration of the load.")
@click.option(
    "--ratio",
    type=Ratio(),
    default="1:4",
    metavar="LIST:GET",
    help="Ratio of queries for the list to queries for one die.",
)
@options.url
@options.experiment
def load_db(**given: Any) -> int:
    """Query the die-service at a constant rate."""
    return _run("load.load_db", given)


@dicelab.command()
@click.argument("experiment", type=click.Choice(EXPERIMENTS), metavar="EXPERIMENT")
@click.option("--compose", is_flag=True, help="Use the lab in containers, by docker or podman.")
@click.option("--kubernetes", is_flag=True, help="Use the lab in a cluster, by kubectl.")
@options.addresses
@click.option("--rate", type=RATE, default=50.0, metavar="N", help="Rolls a second during the experiment.")
@click.option("--steady", type=DURATION, default=5.0, metavar="SECONDS", help="Duration before the fault.")
@click.option("--fault", type=DURATION, default=45.0, metavar="SECONDS", help="Duration of the fault.")
@click.option("--recovery", type=DURATION, default=30.0, metavar="SECONDS", help="The time limit of the recovery.")
@click.option(
    "--silence",
    type=Number(0, 600, " seconds"),
    default=120.0,
    metavar="SECONDS",
    help="The longest wait for alerts to fall silent after the fault.",
)
@options.experiment
def chaos(**given: Any) -> int:
    """Inject a fault into the lab, and check that telemetry shows it."""
    if given["kubernetes"] and given["compose"]:
        raise click.UsageError("--kubernetes cannot be combined with --compose")
    if given["addresses"] and not given["kubernetes"]:
        raise click.UsageError("--url needs --kubernetes")
    return _run("chaos.command", given)


chaos.epilog = f"Experiments: {', '.join(EXPERIMENTS)}."


@dicelab.command()
@click.option(
    "--base-port", type=count(1, 65509), default=8000, metavar="PORT", help="The dice-roller's port; the others follow."
)
def forward(**given: Any) -> int:
    """Forward the ports of a lab in a cluster to this machine."""
    return _run("kubernetes.forward", given)


@dicelab.command()
@click.argument("words", nargs=-1, metavar="[ACTION] [N.M] [ANSWER]...")
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Read the answer from this file."
)
@click.option("--json", is_flag=True, help="Print as JSON.")
@options.run_dir
def learn(**given: Any) -> int:
    """Practise on the running lab, with exercises whose answers are checked.

    \b
    learn [list]           all exercises, and your progress
    learn guide 1          the guide of stage 1
    learn 1.1              begin exercise 1.1: the question
    learn question 1.1     the question again
    learn answer 1.1 42    check an answer
    learn hint 1.1         a hint
    learn solution 1.1     how to find the answer
    learn reset [1.1]      forget the progress

    Exit status: 0 right or done, 1 wrong, 2 not possible.
    """
    return _run("learn.command", given)


@dicelab.command()
@click.argument("words", nargs=-1, metavar="[ACTION] [DIR] [ANSWER]")
@click.option("--seed", type=int, metavar="N", help="Seed of the game [default: random]")
@click.option("--level", type=count(1, 3), default=2, metavar="1..3", help="Level of difficulty.")
@click.option(
    "--within",
    type=Number(5, 600, " seconds"),
    default=80.0,
    metavar="SECONDS",
    help="The fault begins at a random time in the second half of this time.",
)
@click.option(
    "--minutes",
    type=Number(2, 24 * 60, " minutes"),
    default=15.0,
    metavar="N",
    help="The time limit; it can be paused.",
)
@click.option(
    "--answer",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Wait for the answer in this file instead of prompting for it.",
)
@click.option("--json", is_flag=True, help="Print as JSON, and read answers as JSON.")
@options.run_dir
def mystery(**given: Any) -> int:
    """Find the fault of the running lab from its telemetry alone.

    \b
    mystery                    play
    mystery record DIR         record a case instead
    mystery score DIR ANSWER   score an answer to a case
    mystery history            the games and their scores
    mystery seeds              forty seeds to compare with

    When the game ends, for whatever reason, the fault is removed.
    """
    return _run("mystery.command", given)


@dicelab.command()
@click.argument("query", metavar="QUERY")
@click.option("--json", is_flag=True, help="Print a JSON array with an object for each row.")
@click.option("--csv", is_flag=True, help="Print comma-separated values.")
@options.run_dir
def sql(**given: Any) -> int:
    """Query the spans, log lines and samples of the run dir.

    Tables: spans, lines, samples. 'describe spans' lists columns.
    """
    return _run("sql", given)


@dicelab.command()
@click.option("--requests", type=count(1, 100_000), default=200, metavar="N", help="How many requests to measure.")
@click.option(
    "--rolls-a-day", type=count(1, 10**12), metavar="N", help="For the projection [default: from the price file]"
)
@click.option(
    "--prices",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A price file [default: an example]",
)
@click.option("--seed", type=int, default=7, metavar="N", help="Seed of the requests.")
@click.option("--json", is_flag=True, help="Print the report as JSON.")
@options.run_dir
def cost(**given: Any) -> int:
    """Measure what the telemetry of a roll costs.

    Rolls dice, and reports bytes a roll by signal, series by label, telemetry that no query uses, a projection by a
    price file, and the five changes that would save most.
    """
    return _run("cost.command", given)


@dicelab.command()
@click.argument("before", type=STAGE, metavar="A")
@click.argument("after", type=STAGE, metavar="B")
@click.option("--seed", type=int, default=7, metavar="N", help="Seed of the rolls in both stages.")
@click.option("--no-run", "static", is_flag=True, help="Start no lab: compare settings, services and panels only.")
@click.option("--json", is_flag=True, help="Print the changes as JSON.")
def diff(**given: Any) -> int:
    """Compare two stages.

    Starts both for a moment, beside any running lab. Compares settings, services, routes, metrics, log fields, spans
    and panels, and the traces of one roll.
    """
    return _run("diff.command", given)


@dicelab.command()
@click.argument("what", nargs=-1, metavar="[signals|paths|scale]...")
@click.option("--rounds", type=count(1, 100_000), default=5, metavar="N", help="How often each variant is measured.")
@click.option(
    "--seconds",
    type=Number(0.1, 3600, " seconds"),
    default=3.0,
    metavar="SECONDS",
    help="Duration of each measurement.",
)
@click.option("--clients", type=count(1, 4000), default=64, metavar="N", help="Connections.")
@click.option(
    "--minutes",
    type=Number(0.001, 7 * 24 * 60, " minutes"),
    default=1.0,
    metavar="MINUTES",
    help="scale: how long one lab is measured over time.",
)
@click.option("--telemetry", type=click.Choice(["standard", "fast"]), help="Measure only this package of otel/.")
@click.option(
    "--json",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write every run to FILE; - is stdout.",
)
def bench(**given: Any) -> int:
    """Measure what telemetry costs.

    signals: each signal alone, and all. paths: all signals and none, by path. scale: the real delay, many clients,
    batches, over time. The default is signals and paths.
    """
    return _run("bench.command", given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes what its encoding lacks
        sys.stdout.reconfigure(errors="replace")
    try:
        status = _status(arguments)
        print(end="", flush=True)  # an error of stdout is reported here instead of at the end of the interpreter
        return status
    except BrokenPipeError:  # the reader of the pipe has ended, such as head
        discard_output()
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        discard_output()
        print(f"dicelab: {error.filename or 'the output cannot be written'}: {error.strerror}", file=sys.stderr)
        return 1


def _status(arguments: Sequence[str] | None) -> int:
    try:
        status: int = dicelab.main(arguments, prog_name="dicelab", standalone_mode=False)
        return status or 0
    except LabError as error:
        print(f"dicelab: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
