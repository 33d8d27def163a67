"""The projection: what a month of this telemetry costs, by the prices in a file."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab import InputError
from lab.cost.measure import Measurement

EXAMPLE = Path(__file__).with_name("prices.toml")
DAYS = 30  # of a month
GB = 1e9  # bytes


@dataclass(frozen=True)
class Volumes:
    """The prices of a signal that is billed by volume.

    Attributes:
        received_per_gb: for uncompressed bytes, once.
        stored_per_gb_month: for compressed bytes, for each month that they are kept.
    """

    received_per_gb: float
    stored_per_gb_month: float
    retention_days: float

    def month(self, raw: float, compressed: float) -> float:
        """The cost of a month.

        Args:
            raw, compressed: bytes that arrive a day.
        """
        return DAYS * raw / GB * self.received_per_gb + compressed * self.retention_days / GB * self.stored_per_gb_month


@dataclass(frozen=True)
class MetricPrices:
    """The prices of metrics: for active series, and for the bytes of their samples."""

    per_1000_series_month: float
    bytes_per_sample: float
    stored_per_gb_month: float
    retention_days: float

    def month(self, series: float, samples_per_second: float) -> float:
        stored = samples_per_second * 86400 * self.retention_days * self.bytes_per_sample
        return series / 1000 * self.per_1000_series_month + stored / GB * self.stored_per_gb_month


@dataclass(frozen=True)
class Month:
    """What a month costs, by signal."""

    traces: float
    logs: float
    metrics: float

    @property
    def total(self) -> float:
        return self.traces + self.logs + self.metrics


@dataclass(frozen=True)
class Prices:
    """A price file."""

    currency: str
    rolls_a_day: float
    traces: Volumes
    logs: Volumes
    metrics: MetricPrices
    example: bool = False

    @classmethod
    def read(cls, path: Path | None = None) -> Self:
        """Read a price file, by default the example.

        Raises:
            InputError: when it cannot be read, lacks a price, or has an unknown name or an invalid value.
        """
        file = path or EXAMPLE
        try:
            content = tomllib.loads(file.read_text())
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        try:
            return cls(
                str(content["currency"]),
                _number(content, "rolls_a_day"),
                Volumes(**_numbers(content["traces"], Volumes)),
                Volumes(**_numbers(content["logs"], Volumes)),
                MetricPrices(**_numbers(content["metrics"], MetricPrices)),
                example=path is None,
            )
        except KeyError as error:
            raise InputError(f"{file} has no {error.args[0]}") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{file}: {error}") from None

    def month(self, measured: Measurement) -> Month:
        """What a month costs with ``rolls_a_day`` rolls like those that were measured."""
        spans, lines = measured.per_roll(measured.spans), measured.per_roll(measured.lines)
        return Month(
            self.traces.month(*(self.rolls_a_day * size for size in spans)),
            self.logs.month(*(self.rolls_a_day * size for size in lines)),
            self.metrics.month(sum(measured.series.values()), measured.samples_per_second),
        )


def _numbers(section: Mapping[str, Any], prices: type) -> dict[str, float]:
    names = prices.__dataclass_fields__  # type: ignore[attr-defined]  # of a dataclass
    if unknown := sorted(section.keys() - names.keys()):
        raise ValueError(f"{unknown[0]} is not known here")
    return {name: _number(section, name) for name in names}


def _number(section: Mapping[str, Any], name: str) -> float:
    value = section[name]
    # The upper bound refuses infinity, NaN, and whole numbers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r:.40}, not a finite number from 0")
    return float(value)
