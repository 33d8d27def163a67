"""A real browser on a lab's page, for all tests that need one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.labs import Lab

expect.set_options(timeout=15_000)
ROLLS = ".rolls .tabulator-row"  # of this session
Open = Callable[..., Awaitable[Page]]


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: Browser) -> AsyncIterator[Open]:
    """Open a lab's page; everything the browser complains of or fetches elsewhere fails the test."""
    complaints: list[str] = []

    async def opened(lab: Lab, name: str = "alice", path: str = "", **context_options: object) -> Page:
        context = await browser.new_context(**context_options)  # type: ignore[arg-type]
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=lab.front)
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((lab.front, "blob:", "data:", "about:"))
                else complaints.append(f"foreign request {request.url}")
            ),
        )
        await page.goto(lab.front + path)
        if lab.stage == 6:
            await page.get_by_label("Your name").fill(name)
            await page.get_by_role("button", name="Sign in").click()
        await expect(button(page)).to_be_enabled()
        return page

    yield opened
    assert not complaints, complaints


def button(page: Page, name: str = "Roll"):  # type: ignore[no-untyped-def]
    return page.get_by_role("button", name=name, exact=True)


async def roll(page: Page, die: str) -> tuple[str, str]:
    """Click through one roll; returns the status shown and the trace id."""
    await button(page, die).click()
    shown = page.locator("[role=status] [data-trace]")
    before = await shown.get_attribute("data-trace") if await shown.count() else ""
    await button(page).click()
    await expect(shown).not_to_have_attribute("data-trace", before or "")
    await expect(button(page)).to_be_enabled()
    trace_id = await page.locator("[role=status] [data-trace]").get_attribute("data-trace")
    assert trace_id
    return await page.locator("[role=status] .facts span").first.inner_text(), trace_id
