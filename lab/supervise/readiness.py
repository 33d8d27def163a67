"""Whether a service or an engine reports that it is ready."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from lab import LabError
from lab.supervise.processes import Process
from lab.waiting import within

TIMEOUT = aiohttp.ClientTimeout(total=3)
START_TIMEOUT = 30.0  # seconds


async def readiness(session: aiohttp.ClientSession, url: str) -> str | None:
    """``None`` when the URL returns 200, else the reason in words."""
    try:
        async with session.get(url) as response:
            if response.status == 200:
                return None
            text = await response.text()
    except (aiohttp.ClientError, asyncio.TimeoutError, UnicodeDecodeError):
        return "it does not answer"
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or f"status {response.status}"


async def wait_until_ready(session: aiohttp.ClientSession, url: str, process: Process) -> None:
    """Wait until the URL of a process returns 200.

    Raises:
        LabError: when it does not within :data:`START_TIMEOUT` seconds, or the process has ended.
    """
    reason: str | None = None
    async for _ in within(START_TIMEOUT):
        reason = await readiness(session, url)
        if reason is None:
            return
        if not process.running:
            break
    last_line = " ".join(process.last_lines()[-1:])[:300]
    raise LabError(f"{process.name} does not start: {last_line or reason}")
