"""Measure the explorer's index on large files: ``python -m bench.explorer RUN_DIR [SPANS] [LINES]``.

Copies the traces and logs of a lab's run dir many times. Each copy has ids of its own, and is some seconds older than
the next. Then runs the queries of the page's views twice: at the start, and once all files have been read.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import orjson

from frontend.explorer.model import LogQuery, TraceQuery
from frontend.explorer.sources.files import Files

COPY_INTERVAL = 5.0  # seconds between two copies


def masked(identifier: str, mask: int) -> str:
    return f"{int(identifier, 16) ^ mask:0{len(identifier)}x}" if identifier else identifier


def older_export(document: dict[str, Any], mask: int, seconds: float) -> None:
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    span[name] = masked(span.get(name, ""), mask)
                for name in ("startTimeUnixNano", "endTimeUnixNano"):
                    span[name] = str(int(span[name]) - int(seconds * 1e9))


def older_line(document: dict[str, Any], mask: int, seconds: float) -> None:
    for name in ("trace_id", "span_id"):
        if name in document:
            document[name] = masked(document[name], mask)
    at = datetime.fromisoformat(document["timestamp"]) - timedelta(seconds=seconds)
    document["timestamp"] = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def spans_in(document: dict[str, Any]) -> int:
    return sum(len(scope["spans"]) for resource in document["resourceSpans"] for scope in resource["scopeSpans"])


def multiply(
    source: Path, target: Path, wanted: int, count: Callable[[Any], int], older: Callable[[Any, int, float], None]
) -> None:
    """Write copies of a directory's files until they contain as many spans or lines as requested."""
    files = {path.name: path.read_bytes().splitlines() for path in sorted(source.glob("*.jsonl"))}
    once = sum(count(orjson.loads(line)) for lines in files.values() for line in lines)
    if not once:
        sys.exit(f"{source} is empty: roll some dice first")
    copies = -(-wanted // once)
    target.mkdir()
    for name, lines in files.items():
        with open(target / name, "wb") as file:
            for copy in range(copies):
                mask = random.Random(copy).getrandbits(64)
                for line in lines:
                    document = orjson.loads(line)
                    older(document, mask, (copies - copy) * COPY_INTERVAL)
                    file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target.name}: {copies * once} in {size / 1e6:.0f} MB")


async def timed(what: str, asked: Awaitable[list[Any]]) -> list[Any]:
    started = time.perf_counter()
    found = await asked
    print(f"  {what:34} {time.perf_counter() - started:6.3f} s  {len(found)} found")
    return found


async def ask(files: Files) -> None:
    traces = await timed("recent traces", files.traces(TraceQuery()))
    await timed("failed traces", files.traces(TraceQuery(failed=True, service="dice-roller")))
    await timed("one trace", files.trace(traces[0].trace_id))
    await timed("its lines", files.lines(LogQuery(trace_id=traces[0].trace_id)))
    await timed("latest lines", files.lines(LogQuery()))
    await timed("errors", files.lines(LogQuery(level="ERROR")))
    await timed("a text that is in no line", files.lines(LogQuery(text="no such text")))


async def measure(run_dir: Path) -> None:
    files = Files(run_dir)
    print("at the start, its process included")
    started = time.perf_counter()
    await ask(files)
    while files.behind:
        await asyncio.sleep(0.5)
        await files.traces(TraceQuery(limit=1))
    print(f"all read after {time.perf_counter() - started:.1f} s")
    await ask(files)
    await files.close()
    # The peak of the child processes that have ended. The index is the only one.
    print(f"memory of the index at most {getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")


def main(run_dir: Path, spans: int = 100_000, lines: int = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory)
        multiply(run_dir / "traces", target / "traces", spans, spans_in, older_export)
        multiply(run_dir / "logs", target / "logs", lines, lambda _line: 1, older_line)
        asyncio.run(measure(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
