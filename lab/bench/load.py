"""Load on a URL: with wrk if it is on PATH, else with :mod:`bench.load`."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys

from lab import LabError


async def load(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Load a URL; returns ``requests``, ``seconds``, ``failed``, and ``p50`` and ``p99`` in milliseconds."""
    if shutil.which("wrk"):
        duration = f"-d{max(1, round(seconds))}s"
        # wrk's own time-out of 2 s is too short for a thousand clients.
        return read_wrk(await _output("wrk", "-t1", f"-c{clients}", duration, "--timeout", "10s", "--latency", url))
    found: dict[str, float] = json.loads(
        await _output(sys.executable, "-m", "bench.load", url, str(clients), str(seconds))
    )
    return found


def read_wrk(out: str) -> dict[str, float]:
    """Read the output of ``wrk --latency``; returns the same as :func:`load`."""
    count = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", out)
    if count is None:
        raise LabError(f"unexpected output of wrk: {out}")
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    return {
        "requests": int(count[1]),
        "seconds": _milliseconds(count[2], count[3]) / 1000,
        "failed": int(failed[1] if failed else 0) + sum(map(int, broken.groups() if broken else ())),
        "p50": _percentile(out, 50),
        "p99": _percentile(out, 99),
    }


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"{command[0]} ended with status {process.returncode}")
    return out.decode()


def _percentile(out: str, percentile: int) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m)\s*$", out, re.MULTILINE)
    return _milliseconds(found[1], found[2]) if found else 0.0


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]
