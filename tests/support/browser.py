"""A real browser on a lab's page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.labs import Lab

expect.set_options(timeout=15_000)
ROLLS = ".rolls tbody tr"  # of this session
SPANS = "#spans tbody tr"
CONNECTED = "document.body.dataset.connected !== undefined"
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
    """Open a lab's page; errors in the browser and requests to other hosts fail the test."""
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
        await page.wait_for_function(CONNECTED)
        return page

    yield opened
    assert not complaints, complaints


def button(page: Page, name: str = "Roll"):  # type: ignore[no-untyped-def]
    return page.get_by_role("button", name=name, exact=True)


async def roll(page: Page, die: str) -> tuple[str, str]:
    """Click through one roll; returns the status shown and the trace id."""
    await choose(page, die)
    before = await page.locator(ROLLS).count()
    await button(page).click()
    await expect(page.locator(ROLLS)).to_have_count(before + 1)
    await expect(page.locator(".rolling")).to_have_count(0)
    trace_id = await page.locator("#result [data-trace]").get_attribute("data-trace")
    assert trace_id
    return await page.locator("#result .facts span").first.inner_text(), trace_id


async def choose(page: Page, die: str) -> None:
    """Choose a die by its label, as a user does."""
    await page.locator(".segments label", has_text=re.compile(f"^{die}$")).click()


async def open_tab(page: Page, name: str) -> None:
    await page.get_by_role("tab", name=name, exact=True).click()
    await expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
