"""``dicelab status`` and ``dicelab down``."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import aiohttp
from rich.console import Console

from lab import LabError
from lab.supervise import engines
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.rundir import RunDir
from lab.supervise.up import readiness, table

STOP_TIMEOUT = 90.0  # seconds


def status(run_dir: Path, console: Console) -> int:
    """Show what runs; returns 0 when every service is ready, 3 when nothing runs, else 1."""
    directory = RunDir(run_dir)
    state = directory.state()
    if state is None or directory.owner() is None:
        console.print(f"Nothing runs in {directory.path}.", soft_wrap=True, highlight=False)
        return 3
    urls = {service["name"]: service["url"] + "/readyz" for service in state["services"]}
    ready_paths = {engine.name: engine.ready_path for engine in engines.ENGINES}
    urls |= {engine["name"]: engine["url"] + ready_paths[engine["name"]] for engine in state.get("engines", [])}
    answers = asyncio.run(_ask(urls))
    ready = {name: "ready" if answer is None else answer for name, answer in answers.items()}
    console.print(table(f"Dice Lab, stage {state['stage']}", state, ready))
    return 0 if all(answer is None for answer in answers.values()) else 1


async def _ask(urls: dict[str, str]) -> dict[str, str | None]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
        answers = await asyncio.gather(*(readiness(session, url) for url in urls.values()))
    return dict(zip(urls, answers, strict=True))


def down(run_dir: Path, console: Console) -> int:
    """Stop the lab that runs in a run dir and wait until it has; nothing to stop is fine too."""
    directory = RunDir(run_dir)
    owner = directory.owner()
    if owner is None:
        if EmbeddedPostgres(directory.postgres).stop_left_behind():
            console.print("The lab had died; the database that it left behind is stopped.")
            return 0
        console.print(f"Nothing runs in {directory.path}.", soft_wrap=True, highlight=False)
        return 0
    os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while directory.owner() is not None:
        if time.monotonic() > deadline:
            raise LabError(f"process {owner} has not ended after {STOP_TIMEOUT:.0f} s")
        time.sleep(0.05)
    console.print("Stopped.")
    return 0
