"""Results and errors of queries to an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lab import InputError

MAX_ERROR = 160  # characters of an engine's message

Rows = dict[str, float]  # the result of a query: values by one label


def refused(engine: str, message: str) -> InputError:
    """The error for a query that an engine refuses, with the engine's own message in one line."""
    message = " ".join(message.split())
    return InputError(f"{engine}: {message[:MAX_ERROR] + '…' if len(message) > MAX_ERROR else message}")


def rows_of(data: Mapping[str, Any], label: str = "") -> Rows:
    """The result of an instant query of Prometheus or Loki by the values of a label; NaN is left out.

    Raises:
        InputError: when it is not one value for each series.
    """
    kind, result = data["resultType"], data["result"]
    if kind not in ("vector", "scalar"):
        given = {"matrix": "a range of values", "streams": "log lines"}.get(kind, f"a {kind}")
        raise InputError(f"the query gives {given}; expected one value for each series")
    rows: Rows = {}
    for metric, value in [({}, result[1])] if kind == "scalar" else [(r["metric"], r["value"][1]) for r in result]:
        key = str(metric.get(label, "")) if label else ""
        while key in rows:  # a second series with the same label
            key += " (again)"
        if not math.isnan(float(value)):
            rows[key] = float(value)
    return rows
