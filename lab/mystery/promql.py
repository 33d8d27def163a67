"""Evidence in PromQL: a real Prometheus evaluates it on the samples of a case.

It is not the Prometheus of the lab: a recorded case has none, and a query could tell the windows apart by their time or
by the counters. Each window is a database of its own, at the same time, with counters that begin at 0.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import LabError
from lab.mystery.answer import BadAnswer
from lab.mystery.samples import Row
from lab.prometheus import Prometheus, Series

PREFIX = "promql:"


def expression(query: str) -> str | None:
    """The PromQL of a query that begins with :data:`PREFIX`; ``None`` for any other query."""
    return query[len(PREFIX) :].strip() if query.lower().startswith(PREFIX) else None


def values(promql: str, windows: Sequence[Iterable[Row]], at: float) -> list[float]:
    """The number that an expression gives in each window, at a time in seconds since 1970.

    Raises:
        BadAnswer: when Prometheus is not on PATH or refuses the expression, or the result has several numbers.
    """
    with ThreadPoolExecutor(1) as thread:  # an event loop may be running in this one
        return thread.submit(asyncio.run, _values(promql, windows, at)).result()


async def _values(promql: str, windows: Sequence[Iterable[Row]], at: float) -> list[float]:
    found = []
    with tempfile.TemporaryDirectory(prefix="dicelab-mystery-") as scratch:
        samples = Path(scratch) / "samples"
        for rows in windows:
            await asyncio.to_thread(samples.write_text, _text(rows, at))
            try:
                async with Prometheus.on(samples) as engine:
                    result = list((await engine.rows(promql, at)).values())
            except LabError as error:
                raise BadAnswer(f"query: {error}") from None
            if len(result) > 1:
                raise BadAnswer(f"query: one number is expected, not {len(result)}")
            found.append(result[0] if result else 0.0)
    return found


def _text(rows: Iterable[Row], at: float) -> str:
    series = Series()
    series.add("window", {}, 1.0, at)  # a database needs at least one sample
    for row in rows:
        series.add(row.name, {**row.labels, "job": row.service}, row.value, row.at)
    return f"{series.text()}# EOF\n"
