"""Samples for a temporary Prometheus. tests/unit/lab/mystery/test_samples.py runs queries on one."""

from __future__ import annotations

from lab.prometheus import Series


def test_samples_are_written_as_openmetrics() -> None:
    series = Series()
    series.add("name", {"b": 'say "no"\n', "a": "x\\y"}, 3, 1.5)
    assert series.text() == 'name{a="x\\\\y",b="say \\"no\\"\\n"} 3.0 1.500\n'
