"""The exercises in the page, from the question to a wrong and a right answer; and the socket that serves them."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from lab.learn.catalogue import EXERCISES
from lab.learn.progress import Progress
from tests.support.browser import SPANS, Open, open_tab, violations
from tests.support.labs import Lab, dicelab, get, processes_of, wait_for

NUMBER = "4.1"  # restarts nothing


def facts(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = Progress(lab.run_dir).read()[NUMBER]["facts"]
    return found


async def begin(lab: Lab, page: Page) -> dict[str, Any]:
    """Begin an attempt in the page; returns its facts once its question is shown."""
    before = Progress(lab.run_dir).read().get(NUMBER, {}).get("asked", 0)
    await open_tab(page, "Learn")
    await page.get_by_role("button", name=NUMBER).click()
    await expect(page.locator("#learn-title")).to_have_text(f"{NUMBER} {EXERCISES[NUMBER].title}")
    again = page.get_by_role("button", name="New question")
    await page.get_by_role("button", name="Begin").or_(again).click()
    await asyncio.to_thread(wait_for, lambda: Progress(lab.run_dir).read().get(NUMBER, {}).get("asked", 0) > before)
    attempt = facts(lab)
    await expect(page.locator("#learn-question")).to_contain_text(attempt["trace"])
    await expect(page.locator("#learn-exercise")).not_to_contain_text("is being prepared")
    return attempt


async def answer(page: Page, text: str, verdict: str) -> None:
    await page.get_by_label("Your answer").fill(text)
    await page.get_by_role("button", name="Check").click()
    await expect(page.locator(".learn-verdict strong")).to_have_text(verdict)


async def test_from_the_question_to_wrong_with_its_hint_and_to_right(
    stage_lab: Callable[[int], Lab], open_page: Open
) -> None:
    lab = stage_lab(4)
    page = await open_page(lab)
    exercise, attempt = EXERCISES[NUMBER], await begin(lab, page)
    await expect(page.locator("#learn-question")).to_contain_text(
        'How many spans are below the span "async roll batch"'
    )
    await answer(page, "many", "Not possible")
    await expect(page.locator(".learn-verdict")).to_contain_text("the answer has 1 of 2 parts")
    mistake = exercise.mistakes[0]
    await answer(page, mistake.text(attempt), "Wrong")
    await expect(page.locator(".learn-verdict")).to_contain_text(mistake.hint)
    await page.get_by_role("button", name="Hint").click()
    await expect(page.locator(".learn-verdict")).to_contain_text(exercise.hint)

    # The trace of the question, and back to the question, which is still shown.
    await page.locator("#learn-question a").click()
    await expect(page.locator(SPANS).first).to_be_visible()
    await expect(page).to_have_url(re.compile(attempt["trace"]))
    await page.go_back()
    await expect(page.get_by_role("tabpanel", name="Learn")).to_be_visible()
    await answer(page, exercise.reference.text(attempt), "Right")
    await expect(page.get_by_role("button", name=NUMBER)).to_contain_text("done")

    # A newly opened page shows the question and the progress.
    await page.reload()
    await expect(page.locator("#learn-question")).to_contain_text(attempt["trace"])
    await expect(page.locator("#learn-list")).to_contain_text("1 of 24 done")


async def test_on_a_phone_by_keyboard(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    lab = stage_lab(4)
    page = await open_page(lab, viewport={"width": 320, "height": 700})
    attempt = await begin(lab, page)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    await page.get_by_label("Your answer").focus()
    await page.keyboard.type(EXERCISES[NUMBER].reference.text(attempt))
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator(".learn-verdict strong")).to_have_text("Right")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def test_the_guide_of_a_stage_is_read_in_the_page(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4), viewport={"width": 320, "height": 700}, path="/?tab=learn")
    await page.get_by_role("button", name="Guide 4").click()
    guide = page.get_by_role("article", name="Guide to stage 4")
    await expect(guide.get_by_role("heading", name="Stage 4: many rolls at once")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    assert await violations(page) == []
    await page.get_by_role("button", name="Guide 5").click()
    await expect(page.get_by_role("article", name="Guide to stage 5")).to_contain_text("a database")
    await page.get_by_role("button", name="Close the guide").click()
    await expect(page.locator(".guide")).to_have_count(0)


async def test_an_exercise_of_another_stage_names_the_command(stage_lab: Callable[[int], Lab], open_page: Open) -> None:
    page = await open_page(stage_lab(4), path="/?tab=learn&exercise=6.3")
    await expect(page.locator("#learn-exercise")).to_contain_text("dicelab up --stage 6")
    await expect(page.get_by_role("button", name="Begin")).to_have_count(0)


def learn_socket(lab: Lab) -> Path:
    environ = Path(f"/proc/{lab.pid('frontend')}/environ").read_bytes().decode().split("\0")
    return next(Path(line.partition("=")[2]) for line in environ if line.startswith("LEARN_SOCKET="))


def ask(path: Path, body: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("lab")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    with closing(connection):
        connection.request("POST", "/", body)
        answered = connection.getresponse()
        return answered.status, json.loads(answered.read())


def test_the_socket_is_private_and_accepts_only_actions_of_learn(stage_lab: Callable[[int], Lab]) -> None:
    path = learn_socket(stage_lab(4))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for body in (
        "[]",
        "{",
        '{"words": []}',
        '{"words": ["chaos", "1.1"]}',
        '{"words": ["answer", "--file"]}',
        '{"words": ["list", "1.1", "1.2"]}',
    ):
        assert ask(path, body)[0] == 400
    status, reply = ask(path, '{"words": ["hint", "1.1"]}')
    assert (status, reply["status"], reply["document"]["text"]) == (200, 0, EXERCISES["1.1"].hint)
    status, reply = ask(path, '{"words": ["answer", "1.2"], "answer": "--json"}')
    assert (status, reply["status"], reply["error"]) == (
        200,
        2,
        "exercise 1.2 has not been asked; begin with dicelab learn 1.2",
    )


def test_a_lab_that_other_machines_reach_offers_no_exercises(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(2, "--host", "0.0.0.0")
    with pytest.raises(StopIteration):
        learn_socket(lab)
    assert b"tab-learn" not in get(f"{lab.front}/").body


def test_the_command_works_with_the_lab_and_the_lab_is_as_before(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(2)

    def learn(*words: str) -> tuple[int, str]:
        process = dicelab("learn", *words, "--run-dir", lab.run_dir)
        output = process.communicate(timeout=100)[0].decode()
        return process.returncode, output

    status, output = learn("2.2")
    assert status == 0, output
    assert "Answer: dicelab learn answer 2.2 ANSWER" in output
    for service in lab.services:
        pid = next(entry["pid"] for entry in json.loads((lab.run_dir / "state.json").read_text())["services"])
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode()
        assert "OTEL_PROPAGATORS" not in environ, service
    assert get(f"{lab.front}/roll?die=fair").status == 200
    assert learn("3.1") == (
        2,
        "dicelab: exercise 3.1 needs stage 3 or later, and stage 2 runs: dicelab down, then dicelab up --stage 3"
        " --engines\n",
    )
    lab.stop()
    assert not processes_of(lab.run_dir)
    found = Progress(lab.run_dir).read()["2.2"]["facts"]
    status, output = learn("answer", "2.2", EXERCISES["2.2"].reference.text(found))
    assert (status, output) == (0, "Right.\n")
    assert learn("answer", "2.1", "done")[0] == 2
