"""A lab of one stage in a temporary directory, on free ports."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from lab import LabError
from lab.client import Lab
from lab.supervise import engines
from lab.supervise.rundir import RunDir
from lab.supervise.stages import SERVICES, clean_environ

ROLL_DELAY = "0.01"  # seconds
ATTEMPTS = 5  # at finding free ports
PORTS = range(12_000, 15_000)  # below the ephemeral ports
LAB_PORTS = engines.FIRST_PORT + len(engines.PORTS)  # the base port is the first of so many


@asynccontextmanager
async def temporary_lab(stage: int, seed: int) -> AsyncIterator[tuple[Lab, Callable[[], Any]]]:
    """A lab in a temporary directory, and the function that stops it."""
    directory = Path(tempfile.mkdtemp(prefix="dicelab-diff-"))
    run_dir = RunDir(directory / "run")
    environ = clean_environ(os.environ) | {"RANDOM_SEED": str(seed)}

    async def dicelab(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab.cli", *arguments, "--run-dir", str(run_dir.path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def stop() -> None:
        await dicelab("down")

    try:
        for attempt in range(ATTEMPTS):
            port = str(_free_base_port())
            status, said = await dicelab(
                "up", "--detach", "--stage", str(stage), "--base-port", port, "--roll-delay", ROLL_DELAY
            )
            if status == 0:
                break
            if "already in use" not in said or attempt == ATTEMPTS - 1:
                reason = said.splitlines()[-1:] or ["it printed nothing"]
                raise LabError(f"stage {stage} does not start: {reason[0].removeprefix('dicelab: ')}")
        yield Lab.in_run_dir(run_dir.path), stop
    finally:
        await asyncio.shield(stop())
        shutil.rmtree(run_dir.postgres.resolve(), ignore_errors=True)  # as root, the data is elsewhere, behind a link
        shutil.rmtree(directory, ignore_errors=True)


_BASE_PORTS = cycle(random.sample(range(PORTS.start, PORTS.stop, LAB_PORTS), len(PORTS) // LAB_PORTS))


def _free_base_port() -> int:
    """A base port that this command has not used before, and from which all ports of a lab are free now."""
    for base in islice(_BASE_PORTS, len(PORTS)):
        with ExitStack() as sockets, suppress(OSError):
            for offset in (*(service.port_offset for service in SERVICES), *range(engines.FIRST_PORT, LAB_PORTS)):
                sockets.enter_context(socket.create_server(("127.0.0.1", base + offset)))
            return base
    raise LabError(f"no free ports from {PORTS.start} to {PORTS.stop}")
