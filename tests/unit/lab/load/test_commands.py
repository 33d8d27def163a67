"""``dicelab traffic``, ``compare`` and ``load-db`` in front of services that hang, fail or lack a die."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.support.labs import clean_environ


async def run(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Run the command; returns exit status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.cli", *map(str, arguments)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=clean_environ(**variables),
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("command", ["traffic", "compare", "load-db"])
async def test_a_lab_that_hangs_is_reported_after_the_timeout(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        started = time.monotonic()
        done = await run(command, "--url", url, "--timeout", "0.2", "--run-dir", tmp_path / "run")
    assert done == (1, f"dicelab: {url} does not answer: no response in time\n")
    assert time.monotonic() - started < 9  # without the option, 10 s
