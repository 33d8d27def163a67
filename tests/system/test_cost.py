"""``dicelab cost`` without engines, compared with the lab's own counters and files; and its report in the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.async_api import expect

from frontend.browser.render import amount, plural
from lab.signals import total
from tests.support.browser import Open, open_tab, violations
from tests.support.labs import Lab, dicelab

REQUESTS = 40


@pytest.fixture(scope="module")
def measured(stage_lab: Callable[..., Lab]) -> tuple[dict[str, Any], float]:
    """The report of the command, and how many rolls the dice-roller counted meanwhile."""
    lab = stage_lab(6)

    def rolls() -> float:
        return total(lab.samples("dice-roller"), "http_requests_total", {"handler": "/roll"})

    before = rolls()
    command = dicelab(
        *("cost", "--requests", str(REQUESTS), "--run-dir", lab.run_dir, "--json", "--rolls-a-day", "1000")
    )
    output, _ = command.communicate(timeout=110)
    assert command.returncode == 0, output.decode()
    return json.loads(output), rolls() - before


def test_the_cost_of_a_roll_is_measured(stage_lab: Callable[..., Lab], measured: tuple[dict[str, Any], float]) -> None:
    lab = stage_lab(6)
    report, requests = measured
    spans = {(one["service"], one["name"]): one for one in report["span_names"]}
    assert spans["dice-roller", "GET /roll"]["count"] == requests > 0
    assert report["traces"]["kept"] == report["traces"]["requested"] == report["requests"]
    assert spans["dice-roller", "GET /roll"]["asked"] == "query"
    assert spans["dice-roller", "GET"]["asked"] == "map"  # no panel queries it; the service map uses it
    assert spans["dice-roller", "roll {index}"]["asked"] == ""
    # Each service has spans, lines and a page of metrics.
    assert set(report["by_service"]) == set(lab.services) == {"dice-roller", "die-service", "frontend"}
    for name, service in report["by_service"].items():
        assert service["spans"]["raw"] > service["spans"]["compressed"] > 0, name
        assert service["lines"]["raw"] > service["lines"]["compressed"] > 0, name
        assert service["series"] == pytest.approx(len(lab.samples(name)), rel=0.05), name
    # A panel filters for usage events; the other lines of a service are shown as one list.
    assert {one["asked"] for one in report["events"]} == {"filter", "list"}
    assert sum(one["size"] for one in report["events"]) == pytest.approx(
        report["bytes_a_roll"]["lines"]["raw"] * report["rolls"], rel=0.001
    )
    labels = {one["label"]: one for one in report["labels"]}
    assert labels["le"]["contributes"] > labels["die_type"]["contributes"] > 0
    assert len(report["changes"]) == 5
    assert report["projection"]["example_prices"]
    assert report["projection"]["prices"]["rolls_a_day"] == 1000
    assert report["agreement"] == []  # no engine runs


async def test_the_page_shows_the_last_report(
    stage_lab: Callable[..., Lab], measured: tuple[dict[str, Any], float], open_page: Open
) -> None:
    lab = stage_lab(6)
    report, _ = measured
    kept = lab.run_dir / "kept.json"
    kept.write_bytes((lab.run_dir / "cost.json").read_bytes())
    (lab.run_dir / "cost.json").unlink()
    page = await open_page(lab, path="?tab=metrics", viewport={"width": 375, "height": 800})
    cost = page.locator("#cost")
    await open_tab(page, "Metrics")
    await expect(cost).to_contain_text("Not measured yet. dicelab cost rolls")
    kept.rename(lab.run_dir / "cost.json")
    for name, service in report["by_service"].items():
        row = cost.locator(f'[data-cost="{name}"]')
        figures = service["spans"]["raw"], service["lines"]["raw"], service["series"]
        for place, figure in enumerate(figures, start=1):
            await expect(row.locator("td").nth(place)).to_have_text(amount(figure))
        # The bar is as long as its bytes, beside the longest.
        bars = [float(await bar.evaluate("bar => bar.getBBox().width")) for bar in await row.locator("rect").all()]
        assert bars[0] / bars[1] == pytest.approx(figures[0] / figures[1], rel=0.05)
    await expect(cost).to_contain_text(f"with {plural(report['rolls'], 'roll')}")
    await expect(cost).to_contain_text(f"A month with {plural(1000, 'roll')} a day")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await violations(page) == []
