"""Runs a service whose metrics do nothing: ``python -m bench.service roller``.

Settings of the service switch off traces and logs; there is none for metrics.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from otel import metrics


def _nothing(*_: Any, **__: Any) -> None:
    return None


if __name__ == "__main__":
    for method in ("inc", "dec", "set"):
        setattr(metrics.Gauge, method, _nothing)
    metrics.Counter.inc = _nothing  # type: ignore[method-assign]
    metrics.Histogram.observe = _nothing  # type: ignore[method-assign]
    runpy.run_module(sys.argv[1], run_name="__main__")
