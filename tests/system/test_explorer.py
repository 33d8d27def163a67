"""The explorer in the page: a roll's trace, its log lines, recent traces, and what is hostile in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.async_api import Page, expect

from frontend.explorer.waterfall import AXIS, ROW
from tests.support import labs
from tests.support.browser import ROLLS, Open, button, roll
from tests.support.labs import Lab, get, tree

HOSTILE = "<img src=x onerror=alert(1)>{{7*7}}<b>"
LINES = ".lines .tabulator-row"
TRACES = ".traces .tabulator-row"


async def waterfall(page: Page, count: int) -> list[dict[str, Any]]:
    """The rows of the waterfall as the browser has them, once there are ``count``."""
    data = await in_browser(page, "all(`model => 'took_align' in model.data`)[0]", f"data => data.y.length >= {count}")
    return [{name: values[place] for name, values in data.items()} for place in range(len(data["y"]))]


async def in_browser(page: Page, model: str, condition: str) -> dict[str, list[Any]]:
    """The columns of one of the browser's data sources, once they meet a condition."""
    script = f"""
        () => {{
          const all = (test) => Bokeh.documents.flatMap(document => Array.from(document._all_models.values()))
            .filter(model => model.type === "ColumnDataSource").filter(eval(test))
          const model = {model}
          const data = model && Object.fromEntries(
            Object.entries(model.data).map(([name, values]) => [name, Array.from(values)]))
          return data && ({condition})(data) ? data : null
        }}"""
    handle = await page.wait_for_function(script)
    found: dict[str, list[Any]] = await handle.json_value()
    return found


async def click_row(page: Page, place: int) -> None:
    """Click a span's name in the waterfall."""
    await page.wait_for_timeout(350)  # two clicks in less are a double click
    names = page.locator(".waterfall .bk-Canvas").first
    await names.click(position={"x": 100, "y": AXIS + ROW * (place + 0.5)})


def as_tree(rows: list[dict[str, Any]]) -> Any:
    """The rows as nested (service, name, children), by their indentation."""
    top: list[Any] = []
    path: list[tuple[int, list[Any]]] = [(-1, top)]
    for row in rows:
        while path[-1][0] >= row["indent"]:
            path.pop()
        children: list[Any] = []
        path[-1][1].append((row["service"], row["name"], children))
        path.append((row["indent"], children))

    def frozen(nodes: list[Any]) -> Any:
        return tuple((service, name, frozen(children)) for service, name, children in nodes)

    return frozen(top)


async def test_a_roll_its_trace_a_spans_lines_and_back(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab)
    _, trace_id = await roll(page, "fair")
    rows = await waterfall(page, 7)
    spans = await asyncio.to_thread(lab.trace, trace_id, 7)
    assert as_tree(rows) == tree(spans)
    assert [row["left"] for row in rows] == sorted(row["left"] for row in rows)
    await expect(page.locator(".trace [data-source]")).to_have_text("from files")
    await expect(page.locator(".trace [data-arriving]")).to_have_count(0)

    await click_row(page, [row["name"] for row in rows].index("SELECT"))
    detail = page.locator(".detail")
    await expect(detail).to_contain_text("die-service: SELECT")
    await expect(detail).to_contain_text("SELECT identifier, faces, error_rate FROM dice WHERE identifier = %s")
    await click_row(page, [row["name"] for row in rows].index("GET /dice"))
    await expect(detail).to_contain_text("die.identifier")
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator(LINES)).to_have_count(3)
    assert {"Query executed", "Die requested"} <= set(
        await page.locator(LINES).locator("[tabulator-field=message]").all_inner_texts()
    )
    await page.locator(LINES).first.locator("[tabulator-field=trace]").click()
    await expect(detail).to_contain_text("die-service: GET /dice")  # back, with that span selected
    assert page.url == f"{lab.front}/?trace={trace_id}"

    # An older roll of the session: its row leads to its trace again.
    await roll(page, "fair")
    await page.locator(ROLLS).nth(1).click()
    await expect(page.locator(".trace code").first).to_have_text(trace_id)


async def test_many_rolls_overlap_and_failures_are_marked(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await page.get_by_label("Use async rolling").check()
    times = page.get_by_label("Number of rolls")
    await times.fill("100")
    await times.press("Tab")
    _, trace_id = await roll(page, "extreme")
    spans = await asyncio.to_thread(lab.trace, trace_id, 108)
    rows = await waterfall(page, 108)
    assert as_tree(rows) == tree(spans)
    rolls = [row for row in rows if row["name"].startswith("roll ")]
    assert len(rolls) == 100
    at_once = max(sum(other["left"] <= row["left"] < other["right"] for other in rolls) for row in rolls)
    assert at_once > 10
    failed = {span.span_id for span in spans if span.failed}
    assert 0 < len(failed) == sum(row["label"].startswith("✖") for row in rows)


async def test_what_is_drawn_arrives_in_the_order_it_was_drawn(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    page = await open_page(stage_lab(4))
    changes: list[dict[str, Any]] = []  # that the server tells the browser of
    drawn = asyncio.Event()

    def listen(frame: str | bytes) -> None:
        if isinstance(frame, str) and frame.startswith('{"events"'):
            changes.extend(json.loads(frame)["events"])
            if "Click a span" in frame:
                drawn.set()

    page.on("websocket", lambda socket: socket.on("framereceived", listen))
    await page.reload()
    await expect(button(page)).to_be_enabled()
    await roll(page, "fair")
    await asyncio.wait_for(drawn.wait(), labs.TIMEOUT)
    await waterfall(page, 1)
    await expect(page.locator(".detail")).to_contain_text("Click a span")

    def first(attribute: str, *parts: str) -> int:
        return next(
            place
            for place, change in enumerate(changes)
            if change.get("attr") == attribute and all(part in json.dumps(change) for part in parts)
        )

    plot = first("children", "ColumnDataSource", "took_align")
    headline = first("text", "of the path")
    figures = first("data", "took_align")
    height = first("frame_height")
    hint = first("text", "Click a span")
    assert plot < headline < figures < height < hint


async def test_a_shared_link_opens_its_trace(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    page = await open_page(lab, path=f"/?trace={trace_id}")  # by way of the sign-in
    assert page.url == f"{lab.front}/?trace={trace_id}"
    rows = await waterfall(page, 7)
    assert rows[0]["name"] == "HTTP GET"
    await page.goto(f"{lab.front}/?trace={'0' * 31}1")
    await expect(page.locator(".trace")).to_contain_text("still arriving")


@pytest.mark.parametrize("wrong", ["abc", "<script>", "0" * 33, "G" * 32, "A" * 32])
def test_what_is_no_trace_id_is_refused(stage_lab: Callable[[int], Lab], wrong: str) -> None:
    answer = get(f"{stage_lab(6).front}/?trace={wrong}")
    assert answer.status == 400
    assert "32 hexadecimal digits" in answer.json["detail"]


async def test_recent_traces_are_searched(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    assert any(get(f"{lab.front}/roll?die=extreme").status == 500 for _ in range(60))
    get(f"{lab.front}/roll?die=fair")
    page = await open_page(lab)
    await page.get_by_role("tab", name="Recent traces").click()
    await expect(page.locator(TRACES).first).to_be_visible()
    for label, choice in (("Die", "extreme"), ("Status", "failed")):
        await page.get_by_role("combobox", name=label, exact=True).click()
        await page.get_by_role("menuitem", name=choice).click()
    dice = page.locator(TRACES).locator("[tabulator-field=die]")
    await expect(dice.filter(has_text="fair")).to_have_count(0)
    statuses = page.locator(TRACES).locator("[tabulator-field=status]")
    await expect(statuses.filter(has_text="ok")).to_have_count(0)
    await expect(statuses.first).to_have_text("✖ failed")
    await page.locator(TRACES).first.click()
    rows = await waterfall(page, 5)
    assert any(row["label"].startswith("✖") for row in rows)


async def test_what_telemetry_contains_is_text(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    """A user agent, a die's name and a user's name that mean harm, in a trace, its tooltips and its lines."""
    lab = stage_lab(6)
    trace_id = get(f"{lab.front}/roll?die=%3Cimg%20src%3Dx%3E", headers={"User-Agent": HOSTILE}).trace_id
    page = await open_page(lab, name=HOSTILE, path=f"/?trace={trace_id}")
    await waterfall(page, 4)
    await click_row(page, 0)
    await expect(page.locator(".detail")).to_contain_text(HOSTILE)
    await page.locator(".waterfall .bk-Canvas").last.hover(position={"x": 60, "y": AXIS + ROW / 2})
    await expect(page.locator(".bk-Tooltip").first).to_contain_text("HTTP GET")
    await page.get_by_role("tab", name="Logs").click()
    await page.get_by_label("Text", exact=True).fill("onerror")
    await page.get_by_label("Text", exact=True).press("Enter")
    await expect(page.locator(LINES).first).to_contain_text(HOSTILE)
    await page.locator(LINES).first.click()
    await expect(page.locator(".line")).to_contain_text(HOSTILE)
    assert await page.locator("img").count() == 0


async def test_lines_follow_what_happens(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    await page.get_by_role("tab", name="Logs").click()
    await expect(page.locator(LINES).first).to_be_visible()
    trace_id = get(f"{lab.front}/roll?die=nosuch").trace_id
    await expect(page.locator(LINES).filter(has_text=trace_id[:8]).first).to_be_visible()
    await page.get_by_role("combobox", name="Level").click()
    await page.get_by_role("menuitem", name="WARNING").click()
    await expect(page.locator(LINES).filter(has_text="INFO")).to_have_count(0)
    await expect(page.locator(LINES).filter(has_text="WARNING").first).to_be_visible()
    await expect(button(page)).to_be_enabled()


async def test_figures_come_from_the_services_own_pages(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(6)
    page = await open_page(lab)
    before = await asyncio.to_thread(lab.value, "frontend", "http_requests_total")
    await page.get_by_role("tab", name="Metrics").click()
    figures = page.locator(".figures")
    await expect(figures.locator("[data-source]")).to_have_text("from /metrics")
    for service in lab.services:
        await expect(figures).to_contain_text(service)
    for _ in range(10):
        await asyncio.to_thread(get, f"{lab.front}/roll?die=fair")
    series = await in_browser(page, "all(`model => 'promised' in model.data`)[0]", "data => data.count.length == 6")
    assert series["face"] == ["1", "2", "3", "4", "5", "6"]
    assert series["promised"] == pytest.approx([1 / 6] * 6)
    rates = await in_browser(page, "all(`model => 'dice-roller' in model.data`)[0]", "data => data.time.length > 2")
    assert set(lab.services) < set(rates)
    # Looking has asked for nothing that is counted here but the page's own files.
    after = await asyncio.to_thread(lab.value, "frontend", "http_requests_total")
    static = await asyncio.to_thread(lab.value, "frontend", "http_requests_total", handler="/static/{path}")
    assert after - before - 10 <= static


# --- the same from the engines ---


@pytest.fixture(scope="module")
def engines_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = labs.start(tmp_path_factory.mktemp("explorer") / "run", 6, "--engines", roll_delay=0.05)
    yield lab
    lab.stop()


def running(lab: Lab) -> set[str]:
    return {entry["name"] for entry in lab.state["engines"]}


async def test_the_engines_are_asked_where_they_run(engines_lab: Lab, open_page: Open) -> None:
    lab = engines_lab
    page = await open_page(lab)
    _, trace_id = await roll(page, "fair")
    rows = await waterfall(page, 7)
    (top,) = as_tree(rows)
    assert top[:2] == ("frontend", "HTTP GET")
    assert [row["service"] for row in rows] == ["frontend"] * 3 + ["dice-roller"] * 2 + ["die-service"] * 2
    assert [row["indent"] for row in rows] == sorted(row["indent"] for row in rows)
    traces = "Tempo" if "tempo" in running(lab) else "files"
    await expect(page.locator(".trace [data-source]")).to_have_text(f"from {traces}")

    await click_row(page, [row["name"] for row in rows].index("GET /dice"))
    await page.get_by_role("button", name="Log lines of this span").click()
    await expect(page.locator(LINES)).to_have_count(3, timeout=30_000)
    lines = "Loki" if {"loki", "alloy"} <= running(lab) else "files"
    await expect(page.locator("[data-source]")).to_have_text(f"from {lines}")
    await page.locator(LINES).first.locator("[tabulator-field=trace]").click()
    await expect(page.locator(".trace code").first).to_have_text(trace_id)

    await page.get_by_role("tab", name="Recent traces").click()
    await expect(page.locator(TRACES).filter(has_text="fair").first).to_be_visible(timeout=30_000)
    await page.get_by_role("tab", name="Metrics").click()
    await expect(page.locator(".figures [data-source]")).to_have_text("from Prometheus")
    await in_browser(page, "all(`model => 'promised' in model.data`)[0]", "data => data.count.length == 6")
