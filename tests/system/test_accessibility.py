"""axe-core finds no violations: in every view, at every stage, light and dark."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.async_api import expect

from tests.support.browser import AXE, SPANS, VIEWS, Open, choose, open_tab, roll, violations
from tests.support.labs import Lab, get
from tests.support.matrix import has


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    assert AXE.exists(), f"axe-core is not installed; run npm ci in {AXE.parents[2]}"


@pytest.mark.parametrize("stage", [2, 3, 4, 5, 6])
async def test_every_view_is_accessible(stage_lab: Callable[[int], Lab], open_page: Open, stage: int) -> None:
    page = await open_page(stage_lab(stage))
    assert await violations(page) == []  # before the first roll
    # With a failed roll, and a line of a level above INFO.
    die = "extreme" if has("die service", stage) else "risky"  # one of two rolls fails, or one of ten
    while (await roll(page, die))[0] == "200 OK":
        pass
    for view, drawn in VIEWS.items():
        await open_tab(page, view)
        await expect(page.locator(drawn).first).to_be_visible()
        if view == "Trace":
            await page.locator(SPANS).last.click()
            await expect(page.locator("#detail h3")).to_be_visible()
        if view == "Logs":
            await page.get_by_role("button", name="Details of the line").first.click()
            await page.get_by_role("button", name="Only lines whose level").click()
            await expect(page.locator(".chips button")).to_be_visible()
        assert await violations(page) == [], view


async def test_batches_comparisons_and_time_ranges_are_accessible(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    lab = stage_lab(4)
    other = get(f"{lab.front}/roll?die=fair").trace_id
    page = await open_page(lab)
    await page.get_by_label("Use async rolling").check()
    await page.get_by_label("Number of rolls").fill("60")
    await roll(page, "extreme")
    await expect(page.locator(".minimap")).to_be_visible()
    await page.get_by_label("Compare with").select_option(other)
    await expect(page.get_by_role("treegrid")).to_have_count(2)
    await page.get_by_label("Number of rolls").fill("500")
    await expect(page.locator("[aria-invalid]")).to_be_visible()
    await choose(page, "fair")
    await page.get_by_label("Time range").select_option("fixed")
    await expect(page.get_by_label("from", exact=True)).to_be_visible()
    assert await violations(page) == []


@pytest.mark.parametrize(
    ("stage", "service", "path"),
    [
        (1, "dice-roller", "/"),
        (3, "die-service", "/"),
        (6, "frontend", "/sign-in"),
        (6, "frontend", "/docs"),
        (6, "dice-roller", "/docs"),
        (6, "frontend", "/nowhere"),
    ],
)
async def test_other_pages_are_accessible(
    stage_lab: Callable[[int], Lab], blank_page: Open, stage: int, service: str, path: str
) -> None:
    page = await blank_page()
    await page.goto(stage_lab(stage).url(service) + path)
    await expect(page.locator("h1")).to_be_visible()
    assert await violations(page) == []
