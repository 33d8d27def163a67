"""The report of ``dicelab cost`` as the page reads it, and invalid files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontend.explorer.model import SourceError
from frontend.explorer.sources.cost import CostReport, ServiceCost
from lab.cost.collect import Run
from lab.cost.measure import Measurement
from lab.cost.otlp import Size
from lab.cost.prices import Prices
from lab.cost.report import Report


async def test_a_report_is_read_as_the_command_writes_it(tmp_path: Path) -> None:
    source = CostReport(tmp_path)
    assert await source.latest() is None
    measured = Measurement(
        rolls=10,
        traces=8,
        kept=5,
        interval=5.0,
        spans={"dice-roller": Size(4000, 400)},
        lines={"dice-roller": Size(6000, 500)},
        scrape={},
        series={"dice-roller": 200},
        span_names=[],
        events=[],
    )
    report = Report(6, "tail", Run(rolls=10, requests=8), measured, [], [], Prices.read())
    (tmp_path / "cost.json").write_text(json.dumps(report.document()))
    cost = await source.latest()
    assert cost is not None
    assert cost.services == [ServiceCost("dice-roller", 400.0, 600.0, 200)]
    assert (cost.rolls, cost.kept, cost.traces, cost.samples_per_second) == (10, 5, 8, 40.0)
    assert (cost.compressed_spans, cost.compressed_lines) == (40.0, 50.0)
    month = cost.month
    assert month.traces + month.logs + month.metrics == pytest.approx(report.month.total)
    assert month.example


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bytes_a_roll": 1}', "null"])
async def test_an_invalid_report_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(SourceError, match="run the command again"):
        await CostReport(tmp_path).latest()
