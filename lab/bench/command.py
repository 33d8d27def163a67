"""The command ``dicelab bench``: starts a database, runs the measurements, prints and writes their results."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from lab import InputError, LabError
from lab.bench.options import Options
from lab.bench.rounds import measure_paths, measure_signals
from lab.bench.scale import measure_scale
from lab.bench.testbed import Testbed, machine
from lab.bench.variants import path_variants, signal_variants
from lab.supervise.postgres import EmbeddedPostgres
from lab.supervise.processes import schedule_batch

TABLE_WIDTH = 150  # columns


def run(args: Options, console: Console) -> int:
    """Run the command; returns 0, or 1 if a request failed or a span or line was dropped.

    Raises:
        InputError: when a part is unknown.
        LabError: when the file of ``--json`` cannot be written, or the command was interrupted.
    """
    unknown = set(args.what) - {"signals", "paths", "scale"}
    if unknown:
        raise InputError(f"bench knows signals, paths and scale, not {', '.join(sorted(unknown))}")
    if args.json == Path("-"):
        console = Console(stderr=True)
    elif args.json:
        _write(args.json, "", mode="a")  # to fail now, not after the measurements; earlier content is kept
    console.width = max(console.width, TABLE_WIDTH)  # wide enough for every column
    # Clean up as after Ctrl-C. asyncio turns SIGINT into a cancellation; an exception raised by a handler could be lost
    # in a callback that ignores exceptions.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    schedule_batch()  # as dicelab up does
    directory = Path(tempfile.mkdtemp(prefix="dicelab-bench-"))
    # All variants run at the same time, each with a connection pool.
    pools = max(len(signal_variants()), len(path_variants()))
    postgres = EmbeddedPostgres(directory / "postgres", max_connections=20 * pools)
    try:
        url = os.environ.get("DATABASE_URL", "")
        if not url:
            postgres.start()
            url = postgres.url
        return asyncio.run(_bench(args, console, Testbed(directory, url, postgres.pid)))
    except KeyboardInterrupt:
        raise LabError("interrupted before everything was measured") from None
    finally:
        postgres.close()
        shutil.rmtree(directory, ignore_errors=True)


async def _bench(args: Options, console: Console, testbed: Testbed) -> int:
    document: dict[str, Any] = {"machine": machine(), "load": "wrk" if shutil.which("wrk") else "bench.load"}
    faults: list[str] = []
    for part in dict.fromkeys(args.what or ("signals", "paths")):
        measure = {"signals": measure_signals, "paths": measure_paths, "scale": measure_scale}[part]
        document[part] = await measure(args, console, testbed, faults)
    for fault in faults:
        console.print(fault, style="bold red", soft_wrap=True)
    if args.json:
        text = json.dumps(document | {"faults": faults}, indent=1)
        print(text) if args.json == Path("-") else _write(args.json, text + "\n")
    return 1 if faults else 0


def _write(file: Path, text: str, mode: str = "w") -> None:
    try:
        with file.open(mode) as stream:
            stream.write(text)
    except OSError as error:
        raise LabError(f"{file}: {error.strerror}") from None
