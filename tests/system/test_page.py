"""The page in a real browser: roll, roll many, fail, sign in, and trace a click down to the SQL."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Route, expect

from tests.support import labs
from tests.support.browser import CONNECTED, ROLLS, SPANS, VIEWS, Open, button, open_tab, roll, violations
from tests.support.labs import Held, Lab, get, tree, wait_for
from tests.support.matrix import spans_of


async def test_a_roll_requested_before_the_page_is_connected_follows(
    stage_lab: Callable[[int], Lab], blank_page: Open
) -> None:
    page = await blank_page()
    scripts = asyncio.Event()

    async def held_back(route: Route) -> None:
        await scripts.wait()
        await route.continue_()

    await page.route("**/static/**", held_back)
    await page.goto(stage_lab(4).front, wait_until="commit")
    await button(page).click()
    await expect(page.locator("#roll-state")).to_have_text("Connecting, then rolling …")
    scripts.set()
    await expect(page.locator("#result")).to_contain_text("200 OK")
    await expect(page.locator("#roll-state")).to_have_text("")
    await expect(page.locator(ROLLS)).to_have_count(1)


@pytest.mark.parametrize("stage", [2, 4, 6])
async def test_a_click_is_traced_to_the_last_service(
    stage_lab: Callable[[int], Lab], open_page: Open, stage: int
) -> None:
    lab = stage_lab(stage)
    page = await open_page(lab)
    dice = ["fair", "risky"] if stage == 2 else ["extreme", "fair", "risky"]
    for die in dice:
        await expect(page.get_by_role("radio", name=die, exact=True)).to_be_visible()
    before = await asyncio.to_thread(lab.value, "frontend", "streamlit_button_clicks_total", die_type="fair")
    status, trace_id = await roll(page, "fair")
    assert status == "200 OK"
    face = await page.locator("#result svg").get_attribute("aria-label")
    assert face in {"1", "2", "3", "4", "5", "6"}
    assert re.search(r"\d m?s\b", await page.locator("#result").inner_text())
    await page.locator("#result .copy").click()
    await expect(page.locator("#said")).to_have_text("copied")
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
async def test_a_batch_of_rolls(stage_lab: Callable[[int], Lab], open_page: Open, stage: int) -> None:
    page = await open_page(stage_lab(stage))
    times = page.get_by_label("Number of rolls")
    await expect(times).to_be_disabled()
    await page.get_by_label("Use async rolling").check()
    await expect(times).to_be_enabled()
    await times.fill("12")
    await times.press("Tab")
    status, trace_id = await roll(page, "fair")
    assert status == "200 OK"
    faces = [int(await svg.get_attribute("aria-label") or "") for svg in await page.locator("#result svg").all()]
    assert len(faces) == 12
    assert f"Total {sum(faces)} of 12 rolls" in await page.locator("#result").inner_text()
    spans = await asyncio.to_thread(stage_lab(stage).trace, trace_id, spans_of(stage, 12))
    assert len([span for span in spans if re.fullmatch(r"roll \d+", span.name)]) == 12


async def test_stage_2_offers_no_async_rolling(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(2))
    await expect(page.get_by_label("Use async rolling")).to_have_count(0)
    await expect(page.get_by_label("Number of rolls")).to_have_count(0)


async def test_a_failed_roll_is_reported_and_the_controls_recover(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    page = await open_page(stage_lab(4))
    for _ in range(60):  # the extreme die fails every second time
        status, _ = await roll(page, "extreme")
        if status == "500 failed":
            break
    assert status == "500 failed"
    await expect(page.get_by_role("alert")).to_contain_text("The extreme die failed to roll.")
    await expect(page.locator("#result svg")).to_have_attribute("aria-label", "failed roll")
    status, _ = await roll(page, "fair")
    assert status == "200 OK"
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_the_page_reports_services_down_and_recovers(own_lab: Callable[..., Lab], open_page: Open) -> None:
    lab = own_lab(4, ROLLER_TIMEOUT="1.0")
    page = await open_page(lab)
    roller = lab.pid("dice-roller")
    os.kill(roller, signal.SIGSTOP)
    status, _ = await roll(page, "fair")
    assert status == "504 failed"
    await expect(page.get_by_role("alert")).to_contain_text("did not answer in time")
    os.kill(roller, signal.SIGCONT)
    await asyncio.to_thread(wait_for, lambda: get(f"{lab.front}/readyz").status == 200)
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
    # A page opened now still shows its controls.
    second = await page.context.new_page()
    await second.goto(lab.front)
    await expect(button(second)).to_be_visible()
    down.close()
    await asyncio.to_thread(wait_for, lambda: get(f"{lab.front}/readyz").status == 200)
    assert (await roll(page, "fair"))[0] == "200 OK"


async def test_an_invalid_number_of_rolls_is_reported_and_not_sent(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await page.get_by_label("Use async rolling").check()
    number = page.get_by_label("Number of rolls")
    await expect(number).to_be_enabled()
    before = await asyncio.to_thread(lab.value, "frontend", "async_roll_requests_total")
    for times in ("-3", "0", "", "101", "500", "1e9", "2.5"):
        await number.fill("5")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await number.fill(times)
        await expect(page.get_by_role("alert")).to_contain_text("whole number from 1 to 100")
        await button(page).click()
        await number.press("Enter")
    await page.wait_for_timeout(300)
    await expect(page.get_by_role("alert")).to_contain_text("whole number from 1 to 100")
    assert await page.locator(ROLLS).count() == 0
    after = await asyncio.to_thread(lab.value, "frontend", "async_roll_requests_total")
    assert after == before


async def test_a_number_field_accepts_new_numbers_and_enter_rolls(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    page = await open_page(stage_lab(4))
    await page.get_by_label("Use async rolling").check()
    number = page.get_by_label("Number of rolls")
    await expect(number).to_be_enabled()
    for count, rolled in ((25, 1), (7, 2)):
        await number.fill(str(count))
        await number.press("Enter")
        await expect(page.locator(ROLLS)).to_have_count(rolled)
        await expect(page.locator("#result svg")).to_have_count(count)
        await expect(number).to_have_value(str(count))


async def test_session_fixation_is_not_possible(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    victim, attacker = await open_page(lab, name="victim"), await open_page(lab, name="attacker")
    for page in (victim, attacker):
        await page.goto(f"{lab.front}/?bokeh-session-id=fixed")
        await page.wait_for_function(CONNECTED)
    await expect(attacker.get_by_text("attacker", exact=True)).to_be_visible()
    await roll(victim, "fair")
    await attacker.wait_for_timeout(300)
    assert await attacker.locator(ROLLS).count() == 0


async def test_signing_out_ends_other_tabs(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
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


async def test_shutdown_waits_for_a_clicked_roll(own_lab: Callable[..., Lab], blank_page: Open) -> None:
    lab = own_lab(4, roll_delay=3, RANDOM_SEED="75")  # with this seed six of the ten rolls take longer than 2.2 s
    page = await blank_page()
    await page.goto(lab.front)
    await page.wait_for_function(CONNECTED)
    await page.get_by_label("Use async rolling").check()
    await button(page).click()
    await asyncio.to_thread(wait_for, lambda: lab.value("dice-roller", "async_rolls_in_progress") > 5)
    assert await asyncio.to_thread(lab.stop) == 0
    await expect(page.locator(ROLLS)).to_have_count(1)
    assert await page.locator("#result .facts span").first.inner_text() == "200 OK"
    lines = [line for line in lab.logs("frontend") if line.get("backend_url", "").endswith("/roll-async")]
    assert [line["backend_status"] for line in lines] == [200]


async def test_an_unavailable_catalogue_is_reported(own_lab: Callable[..., Lab], blank_page: Open) -> None:
    lab = own_lab(3)
    os.kill(lab.pid("die-service"), signal.SIGSTOP)
    page = await blank_page()
    try:
        await page.goto(lab.front, timeout=10_000)
        await expect(page.get_by_role("alert")).to_contain_text("list of dice could not be loaded")
        await asyncio.to_thread(lab.settle, "frontend")
        assert "Die list failed" in {line["message"] for line in lab.logs("frontend") if line["level"] == "ERROR"}
        await expect(button(page)).to_be_disabled()
    finally:
        os.kill(lab.pid("die-service"), signal.SIGCONT)
    await asyncio.to_thread(wait_for, lambda: get(lab.url("die-service") + "/readyz").status == 200)
    await page.get_by_role("button", name="Load the dice again").click()
    await expect(page.get_by_role("radio", name="extreme")).to_be_visible()
    await expect(button(page)).to_be_enabled()
    assert (await roll(page, "fair"))[0] == "200 OK"


@pytest.fixture(scope="module")
def patient_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab for tests that freeze a service for a while."""
    lab = labs.start(tmp_path_factory.mktemp("page") / "run", 4, ROLLER_TIMEOUT="30")
    yield lab
    lab.stop()


async def test_a_slow_roll_does_not_block_other_sessions(patient_lab: Lab, open_page: Open) -> None:
    lab = patient_lab
    first, second = await open_page(lab), await open_page(lab)
    os.kill(lab.pid("dice-roller"), signal.SIGSTOP)
    try:
        await button(first).click()
        await expect(first.get_by_role("progressbar")).to_have_count(1)
        await button(first).click()  # only one roll at a time: this click is ignored
        # The other session's controls respond meanwhile.
        await second.get_by_label("Use async rolling").check()
        await expect(second.get_by_label("Number of rolls")).to_be_enabled()
    finally:
        os.kill(lab.pid("dice-roller"), signal.SIGCONT)
    await expect(first.get_by_role("progressbar")).to_have_count(0)
    await expect(first.locator(ROLLS)).to_have_count(1)
    assert (await roll(first, "fair"))[0] == "200 OK"
    assert await first.locator(ROLLS).count() == 2


async def test_sign_in_and_out_with_a_hostile_name(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
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


FOCUSED = "(e => `${e.tagName} ${e.type} ${e.name} ${e.id} ${e.textContent.trim()}`)(document.activeElement)"


async def test_the_page_is_usable_by_keyboard_alone(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    """From the address bar to a roll, its trace, a span of it, its lines and back, without the mouse."""
    page = await open_page(stage_lab(4))
    stops = []
    for _ in range(20):
        await page.keyboard.press("Tab")
        stops.append(await page.evaluate(FOCUSED))
        if stops[-1].endswith("Roll"):
            break
    assert len(stops) == len(set(stops)), stops  # each stop is a different element, not the body
    assert stops[0].endswith("Skip to the telemetry")
    await page.keyboard.press("Enter")
    await expect(page.locator(ROLLS)).to_have_count(1)
    spans = page.get_by_role("treegrid").get_by_role("row")
    await expect(spans).to_have_count(7)  # the head, and the six spans of stage 4
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.matches('tbody tr')"):
            break
    await page.keyboard.press("End")
    await page.keyboard.press("Enter")
    await expect(page.locator(".detail")).to_contain_text("die-service: GET /dice")
    for _ in range(5):
        await page.keyboard.press("Tab")
        if (await page.evaluate(FOCUSED)).endswith("Log lines of this span"):
            break
    await page.keyboard.press("Enter")
    await expect(page.locator("table.lines tbody tr").first).to_be_visible()
    await page.get_by_role("tab", name="Logs").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.get_by_role("tab", name="Trace", exact=True)).to_be_focused()
    await expect(page.locator(".detail")).to_be_visible()


async def test_colour_scheme_follows_browser_and_user(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4))
    is_dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(part => part < 70)"
    for scheme in ("light", "dark"):  # as the system is set
        await page.emulate_media(color_scheme=scheme)
        assert await page.evaluate(is_dark) is (scheme == "dark")
    await page.get_by_role("button", name="Dark").click()  # the user's choice takes precedence, and persists
    assert await page.evaluate(is_dark) is False
    await page.reload()
    assert await page.evaluate(is_dark) is False
    await page.get_by_role("button", name="Dark").click()
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(is_dark) is True


async def test_every_width_shows_everything(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(6), viewport={"width": 320, "height": 740})
    await expect(page.locator("#history")).to_be_hidden()  # an empty list takes no space
    for _ in range(60):  # the die fails every second time
        if (await roll(page, "extreme"))[0] != "200 OK":
            break
    # A message is readable in full in the history, too.
    message = page.locator(ROLLS).filter(has_text="failed to roll").first
    await expect(message).to_contain_text("The extreme die failed to roll.")
    for tab, drawn in VIEWS.items():
        await open_tab(page, tab)
        await expect(page.locator(drawn).first).to_be_visible()
        for width in (320, 360, 768, 1024, 1440, 3840):
            await page.set_viewport_size({"width": width, "height": 740})
            box = await page.locator("#explorer").evaluate(
                "card => [document.documentElement.scrollWidth, ...['left', 'right']"
                ".map(side => card.getBoundingClientRect()[side])]"
            )
            assert box[0] <= width, (tab, width)
            assert box[1] >= 8, (tab, width)
            if width >= 1024:  # the page uses the available width
                assert box[2] > 0.95 * width, (tab, width)


CONTRAST = """cell => {  // of a cell's text with its background
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }
  let painted = cell
  while (/^rgba.* 0\\)$/.test(getComputedStyle(painted).backgroundColor)) painted = painted.parentElement
  const both = [getComputedStyle(cell).color, getComputedStyle(painted).backgroundColor].map(luminance)
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_hovered_row_is_readable(stage_lab: Callable[[int], Lab], open_page: Open, scheme: str) -> None:
    page = await open_page(stage_lab(4), color_scheme=scheme)
    await roll(page, "fair")
    tables = {"Trace": [ROLLS, SPANS], "Logs": ["table.lines tr.line"], "Recent traces": ["table.traces tbody tr"]}
    for tab, rows in tables.items():
        await open_tab(page, tab)
        for row in rows:
            await page.locator(row).first.hover()
            assert await page.locator(f"{row} td").nth(1).evaluate(CONTRAST) > 4.5, row


async def test_a_page_reports_a_lost_connection_and_reconnects(patient_lab: Lab, blank_page: Open) -> None:
    lab = patient_lab
    page = await blank_page()
    await page.goto(lab.front)
    await page.wait_for_function(CONNECTED)
    _, trace_id = await roll(page, "fair")
    await open_tab(page, "Logs")
    down = Held(lab, "frontend")
    # A lost socket is noticed at once; a hanging server 9 s after its last response.
    await expect(page.get_by_role("alert")).to_contain_text("connection to the server is lost", timeout=4500)
    assert await violations(page) == []
    await expect(button(page)).to_be_disabled()
    down.close()  # the lab restarts it
    await expect(page.get_by_role("alert")).to_have_count(0, timeout=60_000)
    await page.wait_for_function(CONNECTED)
    await expect(page.locator(ROLLS)).to_have_count(1)
    await expect(page).to_have_url(f"{lab.front}/?tab=logs&trace={trace_id}")
    await expect(page.get_by_role("tab", name="Logs")).to_have_attribute("aria-selected", "true")
    assert (await roll(page, "fair"))[0] == "200 OK"


async def test_a_hanging_roll_hides_old_results_and_can_be_cancelled(patient_lab: Lab, open_page: Open) -> None:
    lab = patient_lab
    page = await open_page(lab)
    await roll(page, "fair")
    await open_tab(page, "Logs")
    roller = lab.pid("dice-roller")
    os.kill(roller, signal.SIGSTOP)
    try:
        await button(page).click()
        await expect(page.locator("#result")).to_have_text(re.compile("Rolling"))
        await expect(page.locator("#result svg")).to_have_count(0)
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_role("alert")).to_contain_text("cancelled")
        await expect(page.get_by_role("progressbar")).to_have_count(0)
    finally:
        os.kill(roller, signal.SIGCONT)
    await expect(page.get_by_role("tabpanel", name="Logs")).to_be_visible()
    assert (await roll(page, "fair"))[0] == "200 OK"


async def test_all_times_use_one_named_time_zone(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4), timezone_id="Asia/Tehran")
    await expect(page.locator("#zone")).to_have_text("Times in UTC+03:30, Asia/Tehran")
    before = datetime.now(ZoneInfo("Asia/Tehran")) - timedelta(minutes=2)  # older lines may be shown, too
    await roll(page, "fair")
    shown = [await page.locator(f"{ROLLS} td").first.inner_text()]
    await expect(page.locator("#spans tbody tr").first).to_be_visible()
    head = await page.locator("#trace").inner_text()
    found = re.search(r"\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d)", head)
    assert found, head
    shown.append(found[1])
    for tab, time in (("Logs", "table.lines tr.line .when"), ("Recent traces", "table.traces td.when")):
        await open_tab(page, tab)
        shown.append((await page.locator(time).first.inner_text())[:8])
    after = datetime.now(ZoneInfo("Asia/Tehran"))
    assert all(f"{before:%H:%M:%S}" <= time <= f"{after:%H:%M:%S}" for time in shown) or before.day != after.day, shown


async def test_a_face_of_zero_is_shown_as_0(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4))
    await page.get_by_label("Use async rolling").check()
    await page.get_by_label("Number of rolls").fill("100")  # a sixth of its rolls shows 0
    await roll(page, "extreme")
    zero = page.locator("#result svg[aria-label='0']").first
    await expect(zero).to_have_text("0")  # a number, not an empty die
    await expect(page.get_by_role("alert")).to_contain_text("rolls of the extreme die failed.")
    await expect(page.get_by_role("alert")).not_to_contain_text("isky")


async def test_a_reload_requests_no_file_again(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    # Panel requests its style sheets last, some of them after the page has been idle.
    sheets = """["loading", "default", "native"].every(name => performance.getEntriesByType("resource").some(
        entry => entry.name.includes(`/${name}.css`)))"""
    await page.wait_for_function(sheets)
    await page.wait_for_load_state("networkidle")
    before = await asyncio.to_thread(lab.value, "frontend", "http_requests_total", handler="/static/{path}")
    assert before > 5
    await page.reload()
    await page.wait_for_function(CONNECTED)
    await page.wait_for_function(sheets)
    await page.wait_for_load_state("networkidle")
    after = await asyncio.to_thread(lab.value, "frontend", "http_requests_total", handler="/static/{path}")
    assert after <= before + 1  # one of Panel's files has no version in its address


async def test_the_pages_of_the_api_are_readable_on_a_phone(stage_lab: Callable[[int], Lab], blank_page: Open) -> None:
    page = await blank_page(viewport={"width": 320, "height": 700})
    await page.goto(f"{stage_lab(4).front}/docs")
    assert "`" not in await page.locator("main").inner_text()
    heights = await page.locator("th code").evaluate_all("codes => codes.map(code => code.getClientRects().length)")
    assert set(heights) == {1}  # a status is on one line
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize(("stage", "service"), [(1, "dice-roller"), (3, "die-service")])
def test_a_service_without_a_page_describes_itself(stage_lab: Callable[[int], Lab], stage: int, service: str) -> None:
    response = get(stage_lab(stage).url(service) + "/")
    assert response.status == 200
    page = response.body.decode()
    assert f"<h1>{service}</h1>" in page
    for path in ("/docs", "/metrics", "/healthz", "/readyz"):
        assert f'href="{path}"' in page
