"""What the telemetry of a roll costs, according to the last report of ``dicelab cost``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from frontend.explorer.model import SourceError


@dataclass(frozen=True)
class ServiceCost:
    """Bytes a roll of a service's spans and log lines, uncompressed, and the number of its series."""

    service: str
    spans: float
    lines: float
    series: int


@dataclass(frozen=True)
class Month:
    """The cost of a month by signal, in ``currency``; ``example``: the prices are those of the example."""

    rolls_a_day: float
    currency: str
    traces: float
    logs: float
    metrics: float
    example: bool


@dataclass(frozen=True)
class Cost:
    """A report.

    Attributes:
        measured: nanoseconds since 1970.
        rolls: the number of measured rolls.
        traces, kept: the number of measured traces, and of those that were kept: fewer if traces are sampled.
        compressed_spans, compressed_lines: bytes a roll of all services, compressed with gzip.
        samples_per_second: of all series, at any number of rolls.
    """

    measured: int
    rolls: int
    traces: int
    kept: int
    services: Sequence[ServiceCost]
    compressed_spans: float
    compressed_lines: float
    samples_per_second: float
    month: Month


class CostReport:
    """The report that ``dicelab cost`` leaves in the run dir."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "cost.json"

    async def latest(self) -> Cost | None:
        """The last report of this lab; ``None`` before the first.

        Raises:
            SourceError: when the file cannot be read.
        """
        try:
            text = await asyncio.to_thread(self._file.read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"The report of dicelab cost cannot be read: {error.strerror}") from error
        try:
            return _cost(orjson.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError("The report of dicelab cost is not valid; run the command again.") from error


def _cost(document: Mapping[str, Any]) -> Cost:
    total, projection = document["bytes_a_roll"], document["projection"]
    prices, month = projection["prices"], projection["month"]
    return Cost(
        measured=int(datetime.fromisoformat(document["measured"]).timestamp() * 1e9),
        rolls=int(document["rolls"]),
        traces=int(document["traces"]["requested"]),
        kept=int(document["traces"]["kept"]),
        services=[
            ServiceCost(name, float(one["spans"]["raw"]), float(one["lines"]["raw"]), int(one["series"]))
            for name, one in document["by_service"].items()
        ],
        compressed_spans=float(total["spans"]["compressed"]),
        compressed_lines=float(total["lines"]["compressed"]),
        samples_per_second=float(document["samples_per_second"]),
        month=Month(
            float(prices["rolls_a_day"]),
            str(prices["currency"]),
            float(month["traces"]),
            float(month["logs"]),
            float(month["metrics"]),
            bool(projection["example_prices"]),
        ),
    )
