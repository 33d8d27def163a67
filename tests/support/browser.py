"""A real browser on a lab's page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from playwright.async_api import Error as PlaywrightError

from frontend.rolls import HISTORY
from tests.support.labs import Lab

PATIENCE = 30_000  # milliseconds after which a missing effect is a failure
expect.set_options(timeout=PATIENCE)
ROLLS = ".rolls tbody tr"  # of this session
SPANS = "#spans tbody tr"
CONNECTED = "document.body.dataset.connected !== undefined"
VIEWS = {  # each tab, and what it shows once it is drawn
    "Trace": SPANS,
    "Logs": "table.lines tr",
    "Metrics": "#charts svg",
    "Service map": ".map svg",
    "Recent traces": "table.traces tr",
    "Learn": ".learn-list button",
}
AXE = Path(__file__).parents[1] / "axe" / "node_modules" / "axe-core" / "axe.min.js"
# Only the needed part leaves the browser: transferring a whole result takes seconds.
RUN = """async (rules) => {
  const result = await axe.run({resultTypes: ["violations"], ...(rules && {runOnly: rules})})
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id)
  return {
    passed: result.passes.length,
    twice: ids.filter((id, place) => ids.indexOf(id) !== place), // axe no longer looks for these
    violations: result.violations.flatMap(({id, impact, nodes}) =>
      nodes.map((node) => `${impact} ${id}: ${node.html.slice(0, 160)} ${node.failureSummary}`)),
  }
}"""
COLOURS = ["color-contrast", "link-in-text-block"]  # axe-core's rules about colours, except those of level AAA
Open = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def idle_contexts() -> dict[str, list[BrowserContext]]:
    """Contexts of the browser that no test uses, by their options. They keep the pages' scripts, compiled."""
    return {}


@pytest_asyncio.fixture(loop_scope="session")
async def blank_page(browser: Browser, idle_contexts: dict[str, list[BrowserContext]]) -> AsyncIterator[Open]:
    """Open an empty page with its own storage and cookies; all pages are closed after the test."""
    used = []

    async def opened(**context_options: object) -> Page:
        idle = idle_contexts.setdefault(repr(sorted(context_options.items())), [])
        context = idle.pop() if idle else await browser.new_context(**context_options)  # type: ignore[arg-type]
        used.append((context, idle))
        page = await context.new_page()
        page.set_default_timeout(PATIENCE)
        return page

    yield opened
    for context, idle in used:
        try:
            async with asyncio.timeout(5):
                await _empty(context)
            idle.append(context)
        except (asyncio.TimeoutError, PlaywrightError):  # a page that does not respond
            await context.close()


async def _empty(context: BrowserContext) -> None:
    """Remove everything that a test has left in a context."""
    await context.clear_cookies()
    await context.clear_permissions()
    for page in context.pages:
        if page.url.startswith("http"):
            await page.evaluate("localStorage.clear()")
        await page.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(blank_page: Open) -> AsyncIterator[Open]:
    """Open a lab's page; errors in the browser and requests to other hosts fail the test."""
    complaints: list[str] = []

    async def opened(lab: Lab, name: str = "alice", path: str = "", **context_options: object) -> Page:
        page = await blank_page(**context_options)
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=lab.front)
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
    newest = f"document.querySelector({ROLLS!r})?.dataset.value"  # the id of its trace
    count, before = await page.locator(ROLLS).count(), await page.evaluate(f"{newest} ?? null")
    await button(page).click()
    await page.wait_for_function(f"before => {newest} !== undefined && {newest} !== before", arg=before)
    await expect(page.locator(ROLLS)).to_have_count(min(count + 1, HISTORY))
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


async def violations(page: Page) -> list[str]:
    """axe-core's violations in light mode, and in dark mode those about colours, which are all that differs."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE.read_text())
    found = []
    for scheme, rules in (("light", None), ("dark", COLOURS)):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        result: dict[str, Any] = await page.evaluate(RUN, rules)
        assert result["passed"]
        assert result["twice"] == []
        found += [f"{scheme}: {violation}" for violation in result["violations"]]
    return found
