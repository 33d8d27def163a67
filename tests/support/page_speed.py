"""Measures the page as a user waits for it: ``python -m tests.support.page_speed [STAGE [CHROMIUM]]``.

Starts a lab and a browser and prints milliseconds: to the page's HTML, to its first usable view (the session responds),
to a roll's result and its trace, and to each tab, the first time and the second. When you quote the results, say what
else the machine was doing.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from playwright.async_api import Browser, async_playwright, expect

from tests.support import labs
from tests.support.browser import CONNECTED, SPANS, VIEWS, button, roll

SHOWN = """([name, drawn]) => new Promise((done) => {
  const start = performance.now()
  for (const tab of document.querySelectorAll("[role=tab]")) if (tab.textContent === name) tab.click()
  const look = () => {
    const there = document.querySelector(drawn)?.getBoundingClientRect().height
    there ? requestAnimationFrame(() => done(performance.now() - start)) : setTimeout(look, 5)
  }
  look()
})"""


async def measure(browser: Browser, lab: labs.Lab, visit: str) -> None:
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    start = perf_counter()

    def say(what: str) -> None:
        nonlocal start
        print(f"{visit:12} {what:28} {(perf_counter() - start) * 1000:6.0f} ms", flush=True)
        start = perf_counter()

    if lab.stage == 6:
        await page.goto(f"{lab.front}/sign-in")
        say("sign-in page")
        await page.get_by_label("Your name").fill("alice")
        start = perf_counter()
        await page.get_by_role("button", name="Sign in").click()
    else:
        await page.goto(lab.front, wait_until="commit")
    await page.wait_for_selector("#roll")
    print(f"{visit:12} {'page drawn':28} {(perf_counter() - start) * 1000:6.0f} ms")
    await page.wait_for_function(CONNECTED)
    await expect(button(page)).to_be_enabled()
    say("first usable view")
    await page.wait_for_timeout(1000)
    start = perf_counter()
    await roll(page, "fair")
    say("roll")
    await expect(page.locator(SPANS).first).to_be_visible()
    say("its first spans")
    for time in ("first time", "second time"):
        for name, drawn in VIEWS.items():
            print(f"{visit:12} {name + ', ' + time:28} {await page.evaluate(SHOWN, [name, drawn]):6.0f} ms", flush=True)
            await page.wait_for_timeout(700)
    start = perf_counter()
    await page.reload()
    await page.wait_for_function(CONNECTED)
    say("reload to usable view")
    await context.close()


async def visits(lab: labs.Lab, chromium: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for visit in ("first visit", "second visit"):
            await measure(browser, lab, visit)
        await browser.close()


def main(stage: str = "6", chromium: str = "/usr/bin/chromium-headless-shell") -> None:
    with tempfile.TemporaryDirectory() as directory:
        lab = labs.start(Path(directory) / "run", int(stage), roll_delay=0)
        try:
            asyncio.run(visits(lab, chromium))
        finally:
            lab.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
