"""The ``dicelab`` command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from lab import LabError, bench, options
from lab.check import check, check_containers
from lab.supervise import control, stages
from lab.supervise.up import Options, up, up_detached

RUN_DIR = Path(".dicelab")


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535 - len(stages.SERVICES):
        raise argparse.ArgumentTypeError(f"{text} is no port to count from")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 60 seconds")
    return seconds


def _workers(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 64")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dicelab", description="An observability lab small enough to understand.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)

    up_parser = commands.add_parser("up", help="start a stage and follow its logs", allow_abbrev=False)
    up_parser.add_argument("--stage", type=int, default=6, metavar="1..6", help="which stage (default 6)")
    up_parser.add_argument(
        "--base-port", type=_port, default=8000, help="the roller's port; others follow (default 8000)"
    )
    up_parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    up_parser.add_argument("--roll-delay", type=_seconds, metavar="SECONDS", help="longest wait of a roll (default 1)")
    up_parser.add_argument(
        "--engines", action="store_true", help="start Prometheus, Tempo and the like too, those that are on PATH"
    )
    up_parser.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes of roller and die-service each (default 1)"
    )
    up_parser.add_argument("--detach", action="store_true", help="return once the lab is ready; it runs on")
    up_parser.add_argument("--no-tail", action="store_true", help="do not follow the logs")

    check_parser = commands.add_parser(
        "check", help="ask whether every feature of the stage is really there", allow_abbrev=False
    )
    check_parser.add_argument("--stage", type=int, metavar="1..6", help="which stage it is to be (default: what runs)")
    check_parser.add_argument(
        "--timeout", type=_seconds, default=20.0, metavar="SECONDS", help="patience with each feature (default 20)"
    )

    check_parser.add_argument("--compose", action="store_true", help="the lab in containers, by docker or podman")

    commands.add_parser("status", help="show what runs and whether it is ready", allow_abbrev=False)
    commands.add_parser("down", help="stop the lab", allow_abbrev=False)
    options.add_parsers(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--run-dir", type=Path, default=RUN_DIR, help=f"where the lab keeps its files (default {RUN_DIR})"
        )
    bench.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(arguments)
    console = Console()
    try:
        if args.command == "status":
            return control.status(args.run_dir, console)
        if args.command == "bench":
            return bench.bench(args, console)
        if args.command == "check":
            ask = check_containers if args.compose else check
            return ask(args.run_dir, args.stage, args.timeout, console)
        if args.command == "down":
            return control.down(args.run_dir, console)
        if "run" in args:
            return int(args.run(args, console))
        up_options = Options(
            args.stage,
            args.base_port,
            args.run_dir,
            args.host,
            args.roll_delay,
            args.engines,
            tail=not (args.no_tail or args.detach),
            workers=args.workers,
        )
        if args.detach:
            inner = [argument for argument in arguments if argument != "--detach"]
            return up_detached(up_options, [*inner, "--no-tail"])
        return up(up_options, console)
    except LabError as error:
        print(f"dicelab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
