"""The explorer in the page: a roll's trace, its log lines, recent traces, and hostile content in them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import ClientSession
from playwright.async_api import Page, expect

from tests.support import labs
from tests.support.browser import ROLLS, SPANS, Open, open_tab, roll
from tests.support.labs import Lab, get, tree

HOSTILE = "<img src=x onerror=alert(1)>{{7*7}}<b>"
LINES = "table.lines tr.line"
TRACES = "table.traces tbody tr"
OF_ROW = """row => ({
  name: row.dataset.name, service: row.dataset.service, level: Number(row.getAttribute("aria-level")),
  left: Number(row.style.getPropertyValue("--left")), width: Number(row.style.getPropertyValue("--width")),
  failed: row.classList.contains("failed"), operation: row.querySelector(".operation").textContent,
})"""


async def waterfall(page: Page, count: int) -> list[dict[str, Any]]:
    """The rows of the waterfall, once there are ``count``."""
    await expect(page.locator(SPANS)).to_have_count(count)
    rows: list[dict[str, Any]] = await page.locator(SPANS).evaluate_all(f"rows => rows.map({OF_ROW})")
    return rows


async def only_lines_of(page: Page, trace_id: str) -> None:
    """Wait until the lines shown are all of this trace."""
    traces = page.locator(f"{LINES} .trace")
    await expect(traces.filter(has_not_text=trace_id[:8])).to_have_count(0)
    await expect(traces.first).to_have_text(trace_id[:8])


async def select(page: Page, name: str) -> None:
    """Click a span of this name in the waterfall."""
    await page.locator(f'{SPANS}[data-name="{name}"]').first.click()


def as_tree(rows: list[dict[str, Any]]) -> Any:
    """The rows as nested (service, name, children), by their level."""
    top: list[Any] = []
    path: list[tuple[int, list[Any]]] = [(0, top)]
    for row in rows:
        while path[-1][0] >= row["level"]:
            path.pop()
        children: list[Any] = []
        path[-1][1].append((row["service"], row["name"], children))
        path.append((row["level"], children))

    def frozen(nodes: list[Any]) -> Any:
        return tuple((service, name, frozen(children)) for service, name, children in nodes)

    return frozen(top)


async def test_navigation_from_roll_to_trace_to_lines_and_back(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    lab = stage_lab(6)
    page = await open_page(lab)
    _, trace_id = await roll(page, "fair")
    rows = await waterfall(page, 7)
    spans = await asyncio.to_thread(lab.trace, trace_id, 7)
    assert as_tree(rows) == tree(spans)
    assert [row["left"] for row in rows] == sorted(row["left"] for row in rows)
    await expect(page.locator("#trace [data-source]")).to_have_text("from files")
    await expect(page.locator("#trace [data-arriving]")).to_have_count(0)

    await select(page, "SELECT")
    detail = page.locator("#detail")
    await expect(detail).to_contain_text("die-service: SELECT")
    await expect(detail).to_contain_text("SELECT identifier, faces, error_rate FROM dice WHERE identifier = %s")
    await select(page, "GET /dice")
    await expect(detail).to_contain_text("die.identifier")
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator(LINES)).to_have_count(3)
    assert {"Query executed", "Die requested"} <= {
        text.split(" die_")[0].split(" db_")[0] for text in await page.locator(f"{LINES} .message").all_inner_texts()
    }
    await page.locator(LINES).first.locator(".trace a").click()
    await expect(detail).to_contain_text("die-service: GET /dice")  # back again, with that span selected
    await expect(page).to_have_url(re.compile(f"{re.escape(lab.front)}/\\?trace={trace_id}&span="))

    # An older roll of the session: its row opens its trace again.
    await roll(page, "fair")
    await page.locator(ROLLS).nth(1).click()
    await expect(page.locator("#trace code").first).to_have_text(trace_id)


async def test_a_span_without_lines_shows_those_of_the_trace(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(6))
    _, trace_id = await roll(page, "fair")
    await waterfall(page, 7)
    await select(page, "SELECT")
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator("#logs-head")).to_contain_text("lines of the whole trace")
    await expect(page.locator(LINES).nth(3)).to_be_visible()
    await only_lines_of(page, trace_id)


async def test_calls_of_the_same_method_are_distinguishable(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(6))
    await roll(page, "fair")
    rows = await waterfall(page, 7)
    operations = [(row["service"], row["operation"]) for row in rows]
    assert len(operations) == len(set(operations))
    assert ("frontend", "GET → dice-roller") in operations
    assert ("die-service", "SELECT → postgresql") in operations


async def test_concurrent_rolls_overlap_and_failures_are_marked(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await page.get_by_label("Use async rolling").check()
    times = page.get_by_label("Number of rolls")
    await times.fill("100")
    _, trace_id = await roll(page, "extreme")
    spans = await asyncio.to_thread(lab.trace, trace_id, 108)
    rows = await waterfall(page, 108)
    assert as_tree(rows) == tree(spans)
    rolls = [row for row in rows if row["name"].startswith("roll ")]
    assert len(rolls) == 100
    at_once = max(
        sum(other["left"] <= row["left"] < other["left"] + other["width"] for other in rolls) for row in rolls
    )
    assert at_once > 10
    failed = {span.span_id for span in spans if span.failed}
    assert 0 < len(failed) == sum(row["failed"] for row in rows)
    await expect(page.locator("#trace")).to_contain_text(f"✖ {len(failed)} failed spans")
    failed_rolls = sum(row["failed"] for row in rolls)
    await expect(page.locator("#result")).to_contain_text(
        f"of the {100 - failed_rolls} rolls that succeeded; {failed_rolls} failed"
    )
    # A drag over the minimap zooms into that part; a button goes back to the whole trace.
    minimap = page.locator(".minimap")
    await minimap.scroll_into_view_if_needed()
    box = await minimap.bounding_box()
    assert box
    await page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 10)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
    await page.mouse.up()
    scale = "Number(document.getElementById('spans').style.getPropertyValue('--scale'))"
    await page.wait_for_function(f"Math.abs({scale} - 4) < 0.2")
    await page.get_by_role("button", name="Whole time line").click()
    await page.wait_for_function(f"{scale} === 1")


async def test_a_span_leads_to_the_metrics_of_its_service(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    _, trace_id = await roll(page, "fair")
    await waterfall(page, 6)
    await page.locator("summary").filter(has_text="critical path").click()
    await expect(page.get_by_text("The critical path determines the duration")).to_be_visible()
    await select(page, "GET /dice")
    await expect(page.locator("#detail")).to_contain_text(re.compile(r"self \d[^:]*on the critical path"))
    await page.get_by_role("button", name="Metrics of die-service").click()
    await expect(page.get_by_role("tabpanel", name="Metrics")).to_be_visible()
    await expect(page.locator("#heat-service")).to_have_value("die-service")
    await expect(page).to_have_url(f"{lab.front}/?tab=metrics&trace={trace_id}&service=die-service")
    await page.go_back()
    await expect(page.locator("#detail")).to_contain_text("die-service: GET /dice")


async def test_all_views_share_the_time_range(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    get(f"{lab.front}/roll?die=fair")
    page = await open_page(lab, path="/?tab=recent&range=1000000000000-1000000060000", timezone_id="Europe/Berlin")
    await expect(page.get_by_label("from", exact=True)).to_have_value("2001-09-09T03:46:40")
    empty = {
        "Recent traces": "No trace matches",
        "Logs": "No line matches",
        "Metrics": "No requests of dice-roller",
        "Service map": "No spans in this time range",
    }
    for tab, words in empty.items():
        await open_tab(page, tab)
        await expect(page.get_by_role("tabpanel", name=tab)).to_contain_text(words)
    await page.get_by_label("Time range").select_option("5m")
    await expect(page.locator("table.calls tbody tr").first).to_be_visible()
    for tab, drawn in {"Recent traces": TRACES, "Logs": LINES, "Metrics": "#heat td button"}.items():
        await open_tab(page, tab)
        await expect(page.locator(drawn).first).to_be_visible()


async def test_a_step_of_the_histogram_selects_its_period(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    await asyncio.to_thread(lab.settle)
    page = await open_page(lab, path="/?tab=logs&range=5m")
    await page.get_by_label("Text", exact=True).fill(trace_id)
    lines = page.locator(LINES)
    await expect(lines.filter(has_text="Roll completed")).to_have_count(1)
    bars = page.locator(".histogram button:has(i)")
    # The histogram follows the lines every few seconds; both at the same moment.
    await page.wait_for_function(
        """lines => {
      const bars = [...document.querySelectorAll(".histogram button:has(i)")]
      const total = bars.map(bar => Number(bar.title.match(/: (\\d+) line/)[1])).reduce((a, b) => a + b, 0)
      return total > 0 && total === document.querySelectorAll(lines).length
    }""",
        arg=LINES,
    )
    await page.get_by_role("button", name="Pause").click()  # otherwise the bars move with the time
    await expect(page.locator("#logs-head")).to_contain_text("paused")
    count = await lines.count()
    await bars.first.click()
    await expect(page.get_by_label("Time range")).to_have_value("fixed")
    await expect(page).to_have_url(re.compile(r"range=\d{13}-\d{13}"))
    await expect(lines.first).to_be_visible()
    assert 0 < await lines.count() <= count


async def test_the_waterfall_is_a_keyboard_accessible_tree(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(6))
    await roll(page, "fair")
    await waterfall(page, 7)
    await page.locator(SPANS).first.focus()
    focused = "document.activeElement.dataset.name"
    await page.keyboard.press("ArrowLeft")  # collapses
    await expect(page.locator(f"{SPANS}:visible")).to_have_count(1)
    await expect(page.locator(SPANS).first).to_have_attribute("aria-expanded", "false")
    await page.keyboard.press("ArrowRight")
    await expect(page.locator(f"{SPANS}:visible")).to_have_count(7)
    await page.keyboard.press("End")
    assert await page.evaluate(focused) == "SELECT"
    await page.keyboard.press("ArrowLeft")  # to its parent
    assert await page.evaluate(focused) == "GET /dice"
    await page.keyboard.press("Enter")
    await expect(page.locator("#detail")).to_contain_text("die-service: GET /dice")
    assert await page.evaluate(focused) == "GET /dice"  # the redraw kept the focus
    row = page.get_by_role("row", name="GET /dice")
    await expect(row).to_have_attribute("aria-selected", "true")
    await expect(row).to_have_attribute("aria-level", "5")

    await page.get_by_role("button", name="Collapse all").click()
    await expect(page.locator(f"{SPANS}:visible")).to_have_count(3)
    await page.get_by_role("button", name="Expand all").click()
    await page.get_by_label("Find in this trace").fill("select")
    await expect(page.locator("[data-found]")).to_have_text("1 of 7 spans match")
    await page.get_by_label("Find in this trace").press("Enter")
    assert await page.evaluate(focused) == "SELECT"


async def test_two_traces_can_be_compared(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab)
    other = get(f"{lab.front}/roll?die=risky").trace_id
    await roll(page, "fair")
    await waterfall(page, 7)
    await expect(page.get_by_label("Compare with").locator(f"option[value='{other}']")).to_have_count(1)
    await page.get_by_label("Compare with").select_option(other)
    await expect(page.get_by_role("treegrid")).to_have_count(2)
    await expect(page.get_by_role("treegrid", name=other).locator("tbody tr").first).to_be_visible()
    differences = page.get_by_role("region", name="Differences by operation")
    await expect(differences).to_contain_text("dice-roller: GET /roll")
    await expect(page).to_have_url(re.compile(f"compare={other}"))
    await page.reload()
    await expect(page.get_by_role("treegrid")).to_have_count(2)


async def test_a_shared_link_opens_its_trace(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    page = await open_page(lab, path=f"/?trace={trace_id}")  # through the sign-in page
    await expect(page).to_have_url(f"{lab.front}/?trace={trace_id}")
    rows = await waterfall(page, 7)
    assert rows[0]["name"] == "HTTP GET"
    await page.goto(f"{lab.front}/?trace={'0' * 31}1")
    await expect(page.locator("#trace")).to_contain_text("still arriving")


async def test_a_shared_view_opens_after_sign_in(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab, path="/?tab=recent&die=fair")
    await expect(page).to_have_url(f"{lab.front}/?tab=recent&die=fair")
    await expect(page.get_by_role("tab", name="Recent traces")).to_have_attribute("aria-selected", "true")
    await expect(page.locator("#recent-die")).to_have_value("fair")


@pytest.mark.parametrize("wrong", ["abc", "<script>", "0" * 33, "G" * 32, "A" * 32])
def test_an_invalid_trace_id_is_refused(stage_lab: Callable[[int], Lab], wrong: str) -> None:
    response = get(f"{stage_lab(6).front}/?trace={wrong}")
    assert response.status == 400
    assert "32 hexadecimal digits" in response.json["detail"]


async def test_the_url_keeps_tab_filters_and_trace(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    _, first = await roll(page, "fair")
    await waterfall(page, 6)
    _, second = await roll(page, "risky")
    await expect(page.locator("#trace code").first).to_have_text(second)
    await expect(page).to_have_url(re.compile(f"trace={second}"))
    await page.go_back()
    await expect(page.locator("#trace code").first).to_have_text(first)
    await page.go_forward()
    await expect(page.locator("#trace code").first).to_have_text(second)

    await open_tab(page, "Logs")
    await page.locator("#logs-level").select_option("WARNING")
    await page.get_by_label("Time range").select_option("6h")
    await expect(page.locator("#logs-head")).to_contain_text("last 6 hours")
    await expect(page).to_have_url(f"{lab.front}/?tab=logs&trace={second}&level=WARNING&range=6h")
    await page.reload()
    await expect(page.get_by_role("tab", name="Logs")).to_have_attribute("aria-selected", "true")
    await expect(page.locator("#logs-level")).to_have_value("WARNING")
    await expect(page.get_by_label("Time range")).to_have_value("6h")
    await expect(page.locator(ROLLS)).to_have_count(2)  # the session's rolls are there again
    await page.go_back()
    await page.go_back()
    await expect(page.get_by_role("tab", name="Trace", exact=True)).to_have_attribute("aria-selected", "true")
    await expect(page.locator("#trace code").first).to_have_text(second)


async def test_recent_traces_can_be_searched(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    assert any(get(f"{lab.front}/roll?die=extreme").status == 500 for _ in range(60))
    get(f"{lab.front}/roll?die=fair")
    page = await open_page(lab)
    await open_tab(page, "Recent traces")
    await expect(page.locator(TRACES).first).to_be_visible()
    await page.get_by_label("Die", exact=True).last.select_option("extreme")
    await page.get_by_label("Status", exact=True).select_option("failed")
    dice = page.locator(f"{TRACES} [data-field=die]")
    await expect(dice.filter(has_text="fair")).to_have_count(0)
    statuses = page.locator(f"{TRACES} [data-field=status]")
    await expect(statuses.filter(has_text="ok")).to_have_count(0)
    await expect(statuses.first).to_have_text("✖ failed")
    # The minimum duration accepts what is typed, and can be cleared again.
    found = await page.locator(TRACES).count()
    least = page.get_by_label("At least, ms")
    await least.fill("100000")
    await expect(page.locator(TRACES)).to_have_count(0)
    await least.fill("")
    await expect(page.locator(TRACES).nth(found - 1)).to_be_visible()
    await page.locator(TRACES).first.click()
    await expect(page.locator(f"{SPANS}.failed").first).to_be_visible()


async def test_telemetry_is_shown_as_plain_text(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    """A hostile user agent, die name and user name, in a trace and its lines."""
    lab = stage_lab(6)
    trace_id = get(f"{lab.front}/roll?die=%3Cimg%20src%3Dx%3E", headers={"User-Agent": HOSTILE}).trace_id
    page = await open_page(lab, name=HOSTILE, path=f"/?trace={trace_id}")
    await expect(page.locator(SPANS).first).to_be_visible()
    await page.locator(SPANS).first.click()
    await expect(page.locator("#detail")).to_contain_text(HOSTILE)
    await open_tab(page, "Logs")
    await page.get_by_label("Text", exact=True).fill("onerror")
    await expect(page.locator(LINES).first).to_contain_text(HOSTILE)
    await page.locator(LINES).first.click()
    await expect(page.locator("tr.expanded")).to_contain_text(HOSTILE)
    await page.get_by_role("button", name="Only lines whose username is").click()
    await expect(page.locator(".chips")).to_contain_text(HOSTILE)
    assert await page.locator("img").count() == 0


async def test_new_lines_appear_until_paused(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await open_tab(page, "Logs")
    await expect(page.locator(LINES).first).to_be_visible()
    assert "/static/" not in await page.locator("#lines").inner_text()  # the page's own files
    await page.get_by_label("Page's own files").check()
    await expect(page.locator(LINES).filter(has_text="/static/").first).to_be_visible()
    await page.get_by_label("Page's own files").uncheck()
    await expect(page.locator(LINES).filter(has_text="/static/")).to_have_count(0)

    trace_id = get(f"{lab.front}/roll?die=nosuch").trace_id
    await expect(page.locator(LINES).filter(has_text=trace_id[:8]).first).to_be_visible()
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#logs-head")).to_contain_text("paused")
    later = get(f"{lab.front}/roll?die=nosuch").trace_id
    await page.wait_for_timeout(1500)
    await expect(page.locator(LINES).filter(has_text=later[:8])).to_have_count(0)
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator(LINES).filter(has_text=later[:8]).first).to_be_visible()

    await page.locator("#logs-level").select_option("WARNING")
    await expect(page.locator(LINES).filter(has_text="INFO")).to_have_count(0)
    await expect(page.locator(LINES).filter(has_text="WARNING").first).to_be_visible()


async def test_lines_expand_and_their_fields_filter(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    for die in ("fair", "risky"):
        get(f"{lab.front}/roll?die={die}")
    page = await open_page(lab)
    await open_tab(page, "Logs")
    await page.get_by_label("Text", exact=True).fill("Button clicked")  # while typing: no Enter
    lines = page.locator(LINES)
    await expect(lines.filter(has_text="die_type=risky").first).to_be_visible()
    await expect(lines.filter(has_text="Backend answered")).to_have_count(0)
    opener = lines.filter(has_text="die_type=risky").first.get_by_role("button")
    await opener.click()
    await expect(opener).to_have_attribute("aria-expanded", "true")
    await page.get_by_role("button", name="Only lines whose die_type is risky").click()
    await expect(lines.filter(has_text="die_type=fair")).to_have_count(0)
    await page.get_by_role("button", name="die_type = risky").click()
    await expect(lines.filter(has_text="die_type=fair").first).to_be_visible()
    await page.get_by_role("button", name="No lines whose die_type is risky").click()
    await expect(lines.filter(has_text="die_type=risky")).to_have_count(0)
    await expect(page.locator(".histogram button").first).to_be_attached()
    # The eight digits that the page itself shows are enough to find an id.
    await page.get_by_title("Remove this filter").click()
    await page.get_by_label("Text", exact=True).fill("")
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    await page.get_by_label("Trace or span id").fill(trace_id[:8])
    await expect(lines.filter(has_text="Roll completed")).to_have_count(1)
    await only_lines_of(page, trace_id)


async def test_figures_come_from_the_services_metrics(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab)
    before = await asyncio.to_thread(lab.value, "frontend", "http_requests_total")
    await open_tab(page, "Metrics")
    await expect(page.locator("[data-collecting]")).to_be_visible()  # instead of empty axes
    figures = page.locator("#figures")
    await expect(figures.locator("[data-source]")).to_have_text("from /metrics")
    for service in lab.services:
        await expect(figures).to_contain_text(service)
    for _ in range(10):
        await asyncio.to_thread(get, f"{lab.front}/roll?die=fair")
    await expect(page.locator("[data-face]")).to_have_count(6)
    assert [await row.get_attribute("data-face") for row in await page.locator("[data-face]").all()] == list("123456")
    expected = await page.locator("[data-expected]").evaluate_all("cells => cells.map(cell => +cell.dataset.expected)")
    assert expected == pytest.approx([1 / 6] * 6)
    await expect(page.locator("[data-collecting]")).to_have_count(0)
    await expect(figures.locator(".tile").first).to_contain_text("over 10 s")
    await expect(figures.locator(".objective")).to_have_count(2)
    await expect(figures.locator(".objective").first).to_contain_text("of the error budget left")
    # Opening the view caused no requests that are counted here, except for static files.
    after = await asyncio.to_thread(lab.value, "frontend", "http_requests_total")
    static = await asyncio.to_thread(lab.value, "frontend", "http_requests_total", handler="/static/{path}")
    assert after - before - 10 <= static


async def test_rolls_update_the_metrics_tab(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4))
    await open_tab(page, "Metrics")
    frontend = page.locator("#figures .tile").filter(has_text="frontend").first
    await expect(frontend).to_contain_text("0/s")
    for _ in range(3):
        await roll(page, "fair")
    await expect(page.get_by_role("tabpanel", name="Metrics")).to_be_visible()  # a roll does not change the view
    await expect(frontend.locator("b")).not_to_have_text("0/s")
    await expect(frontend).to_contain_text("mean")  # too few requests for a percentile
    await expect(frontend).not_to_contain_text("p95")
    # A cell of the heat map opens a trace that is in it.
    await page.get_by_role("button", name="request").last.click()
    await expect(page.locator(SPANS).first).to_be_visible()


async def test_a_tab_that_is_chosen_as_the_session_starts_stays_open(
    stage_lab: Callable[[int], Lab], blank_page: Open
) -> None:
    page = await blank_page()
    await page.add_init_script("""
      new MutationObserver((_, observer) => {
        if (document.body?.dataset.connected === undefined) return
        observer.disconnect()
        document.getElementById("tab-map").click()  // before the session's first response
      }).observe(document, {subtree: true, attributes: true, attributeFilter: ["data-connected"]})
    """)
    await page.goto(stage_lab(4).front)
    await expect(page).to_have_url(re.compile("tab=map"))  # the session has responded
    await expect(page.get_by_role("tabpanel", name="Service map")).to_be_visible()
    await expect(page.get_by_role("tab", name="Service map")).to_have_attribute("aria-selected", "true")


async def test_the_map_shows_calls_between_services(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    assert get(f"{lab.front}/roll?die=fair").status == 200
    page = await open_page(lab)
    await open_tab(page, "Service map")
    rows = page.locator("table.calls tbody tr")
    await expect(page.locator(".map svg .node")).to_have_count(5)
    pairs = await rows.evaluate_all("all => all.map(row => [0, 1].map(cell => row.cells[cell].textContent.trim()))")
    chain = ["users", "frontend", "dice-roller", "die-service", "postgresql"]
    assert set(pairwise(chain)) <= set(map(tuple, pairs))
    await expect(rows.first).to_contain_text("%")
    await rows.filter(has_text="postgresql").get_by_role("link").click()
    await expect(page.locator(f"{SPANS}[data-name=SELECT]").first).to_be_visible()


# --- with engines as sources ---


@pytest.fixture(scope="module")
def engines_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = labs.start(tmp_path_factory.mktemp("explorer") / "run", 6, "--engines", roll_delay=0.05)
    yield lab
    lab.stop()


def running(lab: Lab) -> set[str]:
    return {entry["name"] for entry in lab.state["engines"]}


async def test_engines_are_queried_when_they_run(engines_lab: Lab, open_page: Open) -> None:
    lab = engines_lab
    page = await open_page(lab)
    _, trace_id = await roll(page, "fair")
    rows = await waterfall(page, 7)
    (top,) = as_tree(rows)
    assert top[:2] == ("frontend", "HTTP GET")
    assert [row["service"] for row in rows] == ["frontend"] * 3 + ["dice-roller"] * 2 + ["die-service"] * 2
    assert [row["level"] for row in rows] == sorted(row["level"] for row in rows)
    traces = "Tempo" if "tempo" in running(lab) else "files"
    await expect(page.locator("#trace [data-source]")).to_have_text(f"from {traces}")

    await select(page, "GET /dice")
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator(LINES)).to_have_count(3, timeout=30_000)
    lines = "Loki" if {"loki", "alloy"} <= running(lab) else "files"
    await expect(page.locator("#logs-head [data-source]")).to_have_text(f"from {lines}")
    await expect(page.locator(".histogram i").first).to_be_attached(timeout=30_000)
    await page.locator(LINES).first.locator(".trace a").click()
    await expect(page.locator("#trace code").first).to_have_text(trace_id)

    await open_tab(page, "Recent traces")
    await expect(page.locator(TRACES).filter(has_text="fair").first).to_be_visible(timeout=30_000)
    await open_tab(page, "Metrics")
    await expect(page.locator("#figures [data-source]")).to_have_text("from Prometheus")
    await expect(page.locator("[data-face]")).to_have_count(6, timeout=30_000)
    await expect(page.locator(".objective")).to_have_count(2)
    await expect(page.locator("#heat button").first).to_be_visible(timeout=30_000)
    await open_tab(page, "Service map")
    await expect(page.locator("table.calls tr").filter(has_text="postgresql").first).to_be_visible(timeout=30_000)


@pytest.mark.engines("alertmanager")
async def test_the_page_shows_which_alerts_fire_and_which_are_muted(engines_lab: Lab, open_page: Open) -> None:
    lab = engines_lab
    page = await open_page(lab)
    await open_tab(page, "Metrics")
    alerts = page.get_by_role("region", name="Alerts that fire now")
    await expect(alerts.locator("[data-source]")).to_have_text("from Alertmanager")
    await expect(alerts.locator("[data-alert=DatabaseDown]")).to_have_count(0)
    alertmanager = next(entry["url"] for entry in lab.state["engines"] if entry["name"] == "alertmanager")
    annotations = {"summary": "<b>of the test</b>", "description": "", "runbook_url": "docs/runbooks/X.md"}
    body: list[dict[str, Any]] = [
        {"labels": {"alertname": name, "severity": "page"}, "annotations": annotations}
        for name in ("DatabaseDown", "HighErrorRatio")
    ]
    async with ClientSession() as session:
        assert (await session.post(f"{alertmanager}/api/v2/alerts", json=body)).status == 200
        firing = alerts.locator("[data-alert]")
        await expect(firing).to_have_count(2)
        assert await firing.evaluate_all("all => all.map(one => one.dataset.alert)") == [
            "DatabaseDown",
            "HighErrorRatio",
        ]
        await expect(firing.first).to_contain_text("<b>of the test</b>")
        await expect(firing.first).not_to_contain_text("muted")
        await expect(firing.last).to_contain_text("page, muted")
        await expect(alerts).to_contain_text("2 alerts firing")
        for alert in body:
            alert["endsAt"] = "2026-01-01T00:00:00Z"
        assert (await session.post(f"{alertmanager}/api/v2/alerts", json=body)).status == 200
        await expect(alerts).to_contain_text("No alert fires.")
