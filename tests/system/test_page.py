"""The page in a real browser: roll, roll many, fail, sign in, and follow a click down to the SQL."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.support.browser import ROLLS, Open, button, roll
from tests.support.labs import Held, Lab, get, tree, wait_for
from tests.support.matrix import spans_of


@pytest.mark.parametrize("stage", [2, 4, 6])
async def test_a_click_is_followed_down_to_the_last_service(
    stage_lab: Callable[[int], Lab], open_page: Open, stage: int
) -> None:
    lab = stage_lab(stage)
    page = await open_page(lab)
    dice = ["fair", "risky"] if stage == 2 else ["extreme", "fair", "risky"]
    for die in dice:
        await expect(button(page, die)).to_be_visible()
    before = await asyncio.to_thread(lab.value, "frontend", "streamlit_button_clicks_total", die_type="fair")
    status, trace_id = await roll(page, "fair")
    assert status == "200 OK"
    face = await page.locator("[role=status] svg").get_attribute("aria-label")
    assert face in {"1", "2", "3", "4", "5", "6"}
    assert re.search(r"\d+ ms", await page.locator("[role=status]").inner_text())
    await page.locator("[role=status] .copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == trace_id

    spans = await asyncio.to_thread(lab.trace, trace_id, spans_of(stage))
    select = (("die-service", "SELECT", ()),) if stage == 6 else ()
    dice_call = () if stage == 2 else (("dice-roller", "GET", (("die-service", "GET /dice", select),)),)
    assert tree(spans) == (
        (
            "frontend",
            "HTTP GET",
            (("frontend", "button click", ()), ("frontend", "GET", (("dice-roller", "GET /roll", dice_call),))),
        ),
    )
    result = next(span.attributes["die.result"] for span in spans if span.name == "GET /roll")
    assert str(result) == face
    after = await asyncio.to_thread(lab.value, "frontend", "streamlit_button_clicks_total", die_type="fair")
    assert after == before + 1
    await asyncio.to_thread(lab.settle)
    lines = [line for line in lab.logs() if line.get("trace_id") == trace_id]
    assert {line["logger"] for line in lines} == set(lab.services)
    usage = [line for line in lines if "usage" in line]
    assert [(line["event_type"], line["username"]) for line in usage] == ([("roll", "alice")] if stage == 6 else [])


@pytest.mark.parametrize("stage", [4, 6])
async def test_many_rolls_at_once(stage_lab: Callable[[int], Lab], open_page: Open, stage: int) -> None:
    page = await open_page(stage_lab(stage))
    times = page.get_by_label("Number of rolls")
    await expect(times).to_be_disabled()
    await page.get_by_label("Use async rolling").check()
    await expect(times).to_be_enabled()
    await times.fill("12")
    await times.press("Tab")
    status, trace_id = await roll(page, "fair")
    assert status == "200 OK"
    faces = [int(await svg.get_attribute("aria-label") or "") for svg in await page.locator("[role=status] svg").all()]
    assert len(faces) == 12
    assert f"Total {sum(faces)} of 12 rolls" in await page.locator("[role=status]").inner_text()
    spans = await asyncio.to_thread(stage_lab(stage).trace, trace_id, spans_of(stage, 12))
    assert len([span for span in spans if re.fullmatch(r"roll \d+", span.name)]) == 12


async def test_stage_2_offers_no_async_rolling(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(2))
    await expect(page.get_by_label("Use async rolling")).to_have_count(0)
    await expect(page.get_by_label("Number of rolls")).to_have_count(0)


async def test_a_failed_roll_is_said_and_the_controls_are_usable_again(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    page = await open_page(stage_lab(4))
    for _ in range(60):  # the extreme die fails every second time
        status, _ = await roll(page, "extreme")
        if status == "500 failed":
            break
    assert status == "500 failed"
    await expect(page.get_by_role("alert")).to_contain_text("The extreme die failed to roll.")
    await expect(page.locator("[role=status] svg")).to_have_attribute("aria-label", "failed roll")
    status, _ = await roll(page, "fair")
    assert status == "200 OK"
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_services_down_and_back(own_lab: Callable[..., Lab], open_page: Open) -> None:
    lab = own_lab(4, ROLLER_TIMEOUT="1.0")
    page = await open_page(lab)
    roller = lab.pid("dice-roller")
    os.kill(roller, signal.SIGSTOP)
    status, _ = await roll(page, "fair")
    assert status == "504 failed"
    await expect(page.get_by_role("alert")).to_contain_text("did not answer in time")
    os.kill(roller, signal.SIGCONT)
    assert (await roll(page, "fair"))[0] == "200 OK"
    down = Held(lab, "die-service")
    status, _ = await roll(page, "fair")
    assert status == "503 failed"
    down.hold("dice-roller")
    status, trace_id = await roll(page, "fair")
    assert status == "503 failed"
    await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    spans = await asyncio.to_thread(lab.trace, trace_id, 3)
    assert {span.name for span in spans if span.failed} == {"HTTP GET", "GET"}
    # A page that is opened now says so too, and offers to try again.
    second = await page.context.new_page()
    await second.goto(lab.front)
    await expect(button(second)).to_be_visible()
    down.close()
    await asyncio.to_thread(wait_for, lambda: get(f"{lab.front}/readyz").status == 200)
    assert (await roll(page, "fair"))[0] == "200 OK"


@pytest.mark.parametrize("times", ["-3", "0", "", "101", "1e9"])
async def test_a_number_of_rolls_that_is_none_reaches_nobody(
    stage_lab: Callable[[int], Lab], open_page: Open, times: str
) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await page.get_by_label("Use async rolling").check()
    number = page.get_by_label("Number of rolls")
    await expect(number).to_be_enabled()
    await number.fill(times)
    before = {tuple(sample.labels.items()) for sample in await asyncio.to_thread(lab.samples, "frontend")}
    await button(page).click()
    # The widget may mend the number or hand it on; a number outside the range is rolled by nobody.
    await expect(page.get_by_role("alert").or_(page.locator(ROLLS)).first).to_be_visible()
    after = {tuple(sample.labels.items()) for sample in await asyncio.to_thread(lab.samples, "frontend")}
    assert after == before
    if await page.locator(ROLLS).count():
        assert 1 <= await page.locator("[role=status] svg").count() <= 100
    else:
        await expect(page.get_by_role("alert")).to_contain_text("whole number from 1 to 100")


async def test_nobody_can_be_lured_into_anothers_session(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    victim, attacker = await open_page(lab, name="victim"), await open_page(lab, name="attacker")
    for page in (victim, attacker):
        await page.goto(f"{lab.front}/?bokeh-session-id=fixed")
        await expect(button(page)).to_be_enabled()
    await expect(attacker.get_by_text("attacker", exact=True)).to_be_visible()
    await roll(victim, "fair")
    await attacker.wait_for_timeout(300)
    assert await attacker.locator(ROLLS).count() == 0


async def test_signing_out_ends_the_other_tab_too(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab, name="two tabs")
    other = await page.context.new_page()
    await other.goto(lab.front)
    await roll(other, "fair")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Your name")).to_be_visible()
    await button(other).click()
    await expect(other.get_by_role("alert")).to_contain_text("You have signed out")
    assert await other.locator(ROLLS).count() == 1
    await asyncio.to_thread(lab.settle, "frontend")
    mine = [line["event_type"] for line in lab.logs("frontend") if line.get("username") == "two tabs"]
    assert mine == ["sign_in", "roll", "sign_out"]


async def test_a_clicked_roll_is_finished_before_the_service_ends(
    own_lab: Callable[..., Lab], browser: Browser
) -> None:
    lab = own_lab(4, roll_delay=3)
    page = await browser.new_page()
    await page.goto(lab.front)
    await page.get_by_label("Use async rolling").check()
    await button(page).click()
    await asyncio.to_thread(wait_for, lambda: lab.value("dice-roller", "async_rolls_in_progress") > 5)
    assert await asyncio.to_thread(lab.stop) == 0
    await expect(page.locator(ROLLS)).to_have_count(1)
    assert await page.locator("[role=status] .facts span").first.inner_text() == "200 OK"
    answers = [line for line in lab.logs("frontend") if line.get("backend_url", "").endswith("/roll-async")]
    assert [line["backend_status"] for line in answers] == [200]


async def test_no_dice_at_all(own_lab: Callable[..., Lab], browser: Browser) -> None:
    lab = own_lab(3)
    os.kill(lab.pid("die-service"), signal.SIGSTOP)
    page = await browser.new_page()
    try:
        await page.goto(lab.front, timeout=10_000)
        await expect(page.get_by_role("alert")).to_contain_text("list of dice could not be loaded")
        await asyncio.to_thread(lab.settle, "frontend")
        assert "Die list failed" in {line["message"] for line in lab.logs("frontend") if line["level"] == "ERROR"}
        await expect(button(page)).to_be_disabled()
    finally:
        os.kill(lab.pid("die-service"), signal.SIGCONT)
    await page.get_by_role("button", name="Load the dice again").click()
    await expect(button(page, "extreme")).to_be_visible()
    await expect(button(page)).to_be_enabled()
    assert (await roll(page, "fair"))[0] == "200 OK"


async def test_one_slow_roll_holds_up_no_other_session(own_lab: Callable[..., Lab], open_page: Open) -> None:
    lab = own_lab(4, ROLLER_TIMEOUT="8")
    first, second = await open_page(lab), await open_page(lab)
    os.kill(lab.pid("dice-roller"), signal.SIGSTOP)
    try:
        await button(first).click()
        await expect(first.get_by_role("progressbar")).to_have_count(1)
        await button(first).click()  # one roll at a time: this one is not taken
        # The other session's controls answer meanwhile.
        await second.get_by_label("Use async rolling").check()
        await expect(second.get_by_label("Number of rolls")).to_be_enabled()
    finally:
        os.kill(lab.pid("dice-roller"), signal.SIGCONT)
    await expect(first.get_by_role("progressbar")).to_have_count(0)
    await expect(first.locator(ROLLS)).to_have_count(1)
    assert (await roll(first, "fair"))[0] == "200 OK"
    assert await first.locator(ROLLS).count() == 2


async def test_sign_in_and_out_with_a_name_that_means_harm(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    name = "<img src=x onerror=alert(1)>\"'{{7*7}}🎲"
    page = await open_page(lab, name=name)
    await expect(page.get_by_text(name, exact=True)).to_be_visible()
    await roll(page, "fair")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Your name")).to_be_visible()
    await page.goto(lab.front)
    await expect(page.get_by_label("Your name")).to_be_visible()
    await asyncio.to_thread(lab.settle, "frontend")
    mine = [line for line in lab.logs("frontend") if line.get("username") == name]
    assert [line["event_type"] for line in mine] == ["sign_in", "roll", "sign_out"]
    assert len({line["session_id"] for line in mine}) == 1


async def test_keyboard_alone_is_enough(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4))
    await page.locator("body").press("Tab")
    for _ in range(30):
        focused = await page.evaluate(
            "(() => { let e = document.activeElement; while (e && e.shadowRoot && e.shadowRoot.activeElement)"
            " e = e.shadowRoot.activeElement; return e ? e.textContent.trim() : '' })()"
        )
        if focused.endswith("Roll"):
            break
        await page.keyboard.press("Tab")
    assert focused.endswith("Roll")
    await page.keyboard.press("Enter")
    await expect(page.locator(ROLLS)).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_phone_width_and_colour_schemes(
    stage_lab: Callable[[int], Lab], open_page: Open, scheme: str, tmp_path: Path
) -> None:
    page = await open_page(stage_lab(6), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    await roll(page, "fair")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    channels = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(channels[:3]) < 200) is (scheme == "dark")
