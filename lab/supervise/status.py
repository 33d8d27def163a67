"""``dicelab status``: shows what runs, and whether it is ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from lab.supervise import engines
from lab.supervise.overview import parts, print_overview
from lab.supervise.readiness import TIMEOUT, readiness
from lab.supervise.rundir import RunDir
from lab.terminal import say

NOTHING_RUNS = 3  # exit status


@dataclass(frozen=True)
class Options:
    run_dir: Path
    json: bool = False


def run(options: Options, console: Console) -> int:
    """Show what runs; returns 0 when every part is ready, 3 when nothing runs, else 1."""
    directory = RunDir(options.run_dir)
    state = directory.state() if directory.owner() is not None else None
    if state is None:
        if options.json:
            print(json.dumps({"running": False, "run_dir": str(directory.path)}))
        else:
            say(console, f"Nothing runs in {directory.path}.")
        return NOTHING_RUNS
    reasons = asyncio.run(_ask(_ready_urls(state)))
    if options.json:
        print(json.dumps(_document(directory, state, reasons), indent=2))
    else:
        ready = {name: "ready" if reason is None else reason for name, reason in reasons.items()}
        print_overview(console, state, ready)
    return 0 if all(reason is None for reason in reasons.values()) else 1


def _ready_urls(state: Mapping[str, Any]) -> dict[str, str]:
    paths = {engine.name: engine.ready_path for engine in engines.ENGINES}
    return {
        **{service["name"]: service["url"] + "/readyz" for service in state["services"]},
        **{engine["name"]: engine["url"] + paths[engine["name"]] for engine in state.get("engines", [])},
    }


async def _ask(urls: Mapping[str, str]) -> dict[str, str | None]:
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        reasons = await asyncio.gather(*(readiness(session, url) for url in urls.values()))
    return dict(zip(urls, reasons, strict=True))


def _document(directory: RunDir, state: Mapping[str, Any], reasons: Mapping[str, str | None]) -> dict[str, Any]:
    shown = ("name", "url", "pid", "workers", "restarts")
    return {
        "running": True,
        "run_dir": str(directory.path),
        "stage": state["stage"],
        "telemetry": state["telemetry"],
        "pid": state["pid"],
        "parts": [
            {key: part[key] for key in shown if part.get(key) not in (None, "")}
            | ({"ready": reasons[part["name"]] is None} if part["name"] in reasons else {})
            | ({"reason": reasons[part["name"]]} if reasons.get(part["name"]) else {})
            for part in parts(state)
        ],
    }
