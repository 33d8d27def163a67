"""``dicelab up``: runs a lab, in the foreground or detached."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from rich.console import Console

from lab import LabError
from lab.supervise.full_disk import FULL, discard_unwritten
from lab.supervise.overview import announce
from lab.supervise.plan import LabPlan, Options, loopback
from lab.supervise.processes import schedule_batch
from lab.supervise.rundir import RunDir
from lab.supervise.supervisor import STOP_SIGNALS, Supervisor
from lab.terminal import say
from lab.waiting import POLL, within

__all__ = ["Options", "run"]

# Longer than any start: the lab itself gives up earlier, and reports the reason.
START_TIMEOUT = 600.0  # seconds
# The variable that tells a lab that dicelab up --detach waits for it; its services do not inherit it.
DETACHED = "DICELAB_DETACHED"


def run(options: Options, console: Console) -> int:
    """Run a lab until it is stopped, or detach and return once it is ready; returns the exit status.

    Raises:
        LabError: when it does not start.
    """
    run_dir = RunDir(options.run_dir)
    if options.detach:
        return _run_detached(options, run_dir, console)
    detached = os.environ.pop(DETACHED, "") != ""
    plan = LabPlan(options, run_dir, os.environ)
    if not loopback(options.host):
        say(
            console,
            f"WARNING: --host {options.host} opens the lab to other machines, without a password.",
            "bold yellow",
        )
    if advice := plan.workers_advice(os.cpu_count() or 1):
        say(console, advice, "yellow")
    os.umask(0o077)  # files of the lab, its services and engines are private to the user
    schedule_batch()
    try:
        asyncio.run(Supervisor(plan, console, detached).run())
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise LabError(f"no space left on device in {run_dir.path}") from None
    finally:
        discard_unwritten()
    return 0


def _run_detached(options: Options, run_dir: RunDir, console: Console) -> int:
    """Start the lab as a process of its own; returns once it is ready, or once it has failed.

    The lab writes errors of its start to a pipe, because the disk with its log may be full.
    """
    run_dir.make()
    try:
        log = open(os.open(run_dir.own_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    except OSError as error:
        raise LabError(f"run dir {run_dir.path}: {error.strerror}") from None
    with log, _signals() as received:
        before = os.fstat(log.fileno()).st_size
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.cli", "up", *arguments(replace(options, detach=False, tail=False))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.PIPE,
            env={**os.environ, DETACHED: "1"},
            start_new_session=True,
            text=True,
            errors="replace",
        )
        state = _wait(process, run_dir, received)
        errors = "" if state and not received else _stop(process, received)
    if received:
        print("dicelab: interrupted; everything that had started has been stopped", file=sys.stderr)
        return 128 + received[0]  # as shells have it
    said = run_dir.own_log.read_bytes()[before:].decode(errors="replace").rstrip()
    if state is not None:
        if process.stderr is not None:
            process.stderr.close()
        if said:
            print(said)
        announce(console, run_dir, state)
        return 0
    print("\n".join(filter(None, (said, errors))), file=sys.stderr)
    return max(process.wait(), 1)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrive during the block and would end this process."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[str], run_dir: RunDir, received: Sequence[int]) -> dict[str, Any] | None:
    """The state of the lab once it is ready; ``None`` if it has ended, or if a signal was received."""
    for _ in within(START_TIMEOUT):
        if received or process.poll() is not None:
            break
        state = run_dir.state()
        if state is not None and state.get("pid") == process.pid:
            return state
    return None


def _stop(process: subprocess.Popen[str], received: Sequence[int]) -> str:
    """Stop the lab, unless it has ended; a further signal is passed on. Returns what it has written to stderr."""
    process.terminate()
    passed_on = len(received)
    while True:
        try:
            return process.communicate(timeout=POLL)[1].rstrip()
        except subprocess.TimeoutExpired:
            if len(received) > passed_on:
                passed_on = len(received)
                process.terminate()


def arguments(options: Options) -> list[str]:
    """The command-line arguments for these options."""
    given = []
    for field in fields(options):
        value = getattr(options, field.name)
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "tail":
            given += [] if value else ["--no-tail"]
        elif isinstance(value, bool):
            given += [name] if value else []
        elif value is not None:
            given += [name, str(value)]
    return given
