"""Whether a service or an engine reports that it is ready."""

from __future__ import annotations

import asyncio
import json

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=3)


async def readiness(session: aiohttp.ClientSession, url: str) -> str | None:
    """``None`` when the URL answers 200, else the reason in words."""
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
