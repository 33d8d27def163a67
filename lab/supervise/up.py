"""``dicelab up``: runs a lab, in the foreground or detached."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from dataclasses import fields, replace

from rich.console import Console

from lab import LabError
from lab.supervise.plan import LabPlan, Options, loopback
from lab.supervise.processes import schedule_batch
from lab.supervise.rundir import RunDir
from lab.supervise.supervisor import Supervisor
from lab.terminal import say
from lab.waiting import within

__all__ = ["Options", "run"]

# Longer than any start: the lab itself gives up earlier, and reports the reason.
START_TIMEOUT = 600.0  # seconds


def run(options: Options, console: Console) -> int:
    """Run a lab until it is stopped, or detach and return once it is ready; returns the exit status.

    Raises:
        LabError: when it does not start.
    """
    run_dir = RunDir(options.run_dir)
    if options.detach:
        return _run_detached(options, run_dir)
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
        asyncio.run(Supervisor(plan, console).run())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise LabError(f"no space left on device in {run_dir.path}") from None
    return 0


def _run_detached(options: Options, run_dir: RunDir) -> int:
    """Start the lab as a process of its own; returns once it is ready, or once it has failed."""
    run_dir.make()
    try:
        log = open(os.open(run_dir.own_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    except OSError as error:
        raise LabError(f"run dir {run_dir.path}: {error.strerror}") from None
    with log:
        before = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.cli", "up", *arguments(replace(options, detach=False, tail=False))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ready = False
    try:
        for _ in within(START_TIMEOUT):
            state = run_dir.state()
            ready = state is not None and state.get("pid") == process.pid
            if ready or process.poll() is not None:
                break
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise LabError("interrupted; everything that had started has been stopped") from None
    said = run_dir.own_log.read_bytes()[before:].decode(errors="replace").rstrip()
    if not ready:
        process.terminate()  # has no effect if it has ended
        print(said, file=sys.stderr)
        return process.wait()
    print(said)
    return 0


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
