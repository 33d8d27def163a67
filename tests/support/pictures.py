"""Takes new pictures for the README: ``python -m tests.support.pictures [CHROMIUM]``.

Starts a lab of stage 6, rolls in the page, and writes ``docs/page.png``, ``docs/logs.png``, ``docs/metrics.png``,
``docs/map.png`` and the animation ``docs/roll.webp``: a roll and its trace.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import Page, async_playwright, expect

from lab.paths import DOCS
from tests.support import labs
from tests.support.browser import CONNECTED, SPANS, choose, open_tab, roll

SIZE = (1280, 800)
FRAME = 250  # milliseconds


async def film(page: Page) -> None:
    """An animation of a roll, its trace, a span of it and that span's lines."""
    frames: list[Image.Image] = []
    durations: list[int] = []

    async def frame(duration: int = FRAME) -> None:
        picture = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
        frames.append(picture.resize((960, 600), Image.Resampling.LANCZOS))
        durations.append(duration)

    await choose(page, "fair")
    await frame(1000)
    await page.get_by_role("button", name="Roll", exact=True).click()
    await frame(400)
    await frame()
    await expect(page.locator(SPANS)).to_have_count(7)
    await page.wait_for_timeout(600)
    await frame(1800)
    await page.locator(f'{SPANS}[data-name="SELECT"]').click()
    await expect(page.locator("#detail")).to_contain_text("SELECT")
    await frame(2200)
    await page.locator(f'{SPANS}[data-name="GET /dice"]').click()
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator("table.lines tr.line")).to_have_count(3)
    await frame(2500)
    frames[0].save(
        DOCS / "roll.webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, method=6
    )


async def take(lab: labs.Lab, chromium: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = await browser.new_context(viewport={"width": SIZE[0], "height": SIZE[1]})
        page = await context.new_page()
        await page.goto(lab.front)
        await page.get_by_label("Your name").fill("alice")
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_function(CONNECTED)
        await film(page)
        await open_tab(page, "Metrics")
        for die in ("fair", "risky", "extreme") * 8:
            await asyncio.to_thread(labs.get, f"{lab.url('dice-roller')}/roll?die={die}")
        await page.get_by_label("Use async rolling").check()
        await page.get_by_label("Number of rolls").fill("10")
        await page.get_by_label("Time range").select_option("5m")
        for _ in range(3):
            await roll(page, "fair")
        await page.wait_for_timeout(3000)
        await page.screenshot(path=DOCS / "metrics.png", full_page=True)
        await open_tab(page, "Service map")
        await expect(page.locator(".map svg")).to_be_visible()
        await page.screenshot(path=DOCS / "map.png")
        await open_tab(page, "Logs")
        await expect(page.locator("table.lines tr.line").first).to_be_visible()
        await page.locator("table.lines tr.line").nth(2).click()
        await page.wait_for_timeout(500)
        await page.screenshot(path=DOCS / "logs.png")
        await open_tab(page, "Trace")
        await expect(page.locator(SPANS).first).to_be_visible()
        await page.wait_for_timeout(4000)
        await page.locator(SPANS).nth(8).click()
        await page.wait_for_timeout(300)
        await page.screenshot(path=DOCS / "page.png", full_page=True)
        await browser.close()


def main(chromium: str = "/usr/bin/chromium-headless-shell") -> None:
    with tempfile.TemporaryDirectory() as directory:
        lab = labs.start(Path(directory) / "run", 6, roll_delay=0.3)
        try:
            asyncio.run(take(lab, chromium))
        finally:
            lab.stop()
    for name in ("page.png", "logs.png", "metrics.png", "map.png"):
        picture = Image.open(DOCS / name).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
        picture.save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
