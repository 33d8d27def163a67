"""The mystery game against a real lab: only symptoms reveal the fault, and everything is restored."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, expect

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.client import Lab as AnyLab
from lab.mystery import command, files
from lab.mystery.answer import Answer
from lab.mystery.evidence import anomaly
from lab.mystery.game import Game, Played, play
from lab.mystery.history import History
from lab.mystery.plan import draw
from lab.mystery.score import score
from lab.mystery.situations import MECHANISMS, SITUATIONS, Facets, Fault
from lab.signals import OPENMETRICS
from lab.tables import Tables
from tests.support import labs
from tests.support.browser import Open, violations
from tests.support.labs import Lab, dicelab, get, wait_for

pytestmark = pytest.mark.timeout(300)  # each game restarts all services twice, which takes a while on a busy machine
STEADY, FAULT = 6.0, 13.0  # seconds
SEED = 8  # at level 1 and within 5 seconds: a fault that makes spans fail
DELAY = 1.5  # seconds: nothing else takes as long, even on a busy machine
VARIABLE = "DEFECTS_SOCKET"
# Words that must appear nowhere while a fault is on, except names that are words of everyday English.
SECRETS = sorted(
    {name for name in (*SITUATIONS, *MECHANISMS) if "-" in name} | {"no_context", "full_disk", "retry_storm", "weights"}
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests here; the last of them stops it."""
    started = labs.start(tmp_path_factory.mktemp("mystery") / "run", 6)
    yield started
    started.stop()


def state(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.run_dir / "state.json").read_text())
    return found


def environ(lab: Lab, service: str) -> dict[str, str]:
    pid = next(entry["pid"] for entry in state(lab)["services"] if entry["name"] == service)
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:  # it is being restarted
        return {}
    return dict(pair.split("=", 1) for pair in pairs if pair)


def as_before(lab: Lab) -> bool:
    """Whether every service runs with the settings that it had before any game, and answers."""
    environs = {service: environ(lab, service) for service in (FRONTEND, ROLLER, DIE_SERVICE)}
    return (
        all(found and VARIABLE not in found for found in environs.values())
        and environs[FRONTEND]["DICE_ROLLER_URL"] == lab.url(ROLLER)
        and environs[ROLLER]["DIE_SERVICE_URL"] == lab.url(DIE_SERVICE)
        and environs[DIE_SERVICE]["DATABASE_URL"] == lab.state["postgres"]["url"]
        and all(_status(f"{lab.url(service)}/readyz") == 200 for service in lab.services)
    )


def _status(url: str) -> int:
    try:
        return get(url).status
    except OSError:
        return 0


@dataclass
class Seen:
    """Everything that a player can look at while a fault is on.

    Attributes:
        shape: the parts that must be the same in every game, whatever its fault is.
        text: everything, to be searched.
    """

    shape: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def look(lab: Lab, files_before: dict[Path, int]) -> Seen:
    seen = Seen()
    now = state(lab)
    for service in lab.services:
        pid = next(entry["pid"] for entry in now["services"] if entry["name"] == service)
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        variables = environ(lab, service)
        page = get(f"{lab.url(service)}/metrics", headers={"Accept": OPENMETRICS}).body.decode()
        seen.text += "\n".join((*arguments, *(f"{name}={value}" for name, value in variables.items()), page))
        seen.text += get(f"{lab.url(service)}/openapi.json").body.decode()
        seen.shape[service] = {
            "arguments": arguments,
            "environ": {name: _without_numbers(value) for name, value in variables.items()},
            "metrics": sorted(set(re.findall(r"^# TYPE (\S+ \S+)", page, re.MULTILINE))),
            "limits": Path(f"/proc/{pid}/limits").read_text(),
        }
    supervisor = Path(f"/proc/{now['pid']}")
    seen.text += (supervisor / "cmdline").read_text() + (supervisor / "environ").read_text()
    listening = {
        line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "/dicelab-" in line.split()[-1]
    }
    seen.text += "\n".join(listening)
    status = dicelab("status", "--json", "--run-dir", lab.run_dir).communicate(timeout=30)[0].decode()
    seen.text += status + json.dumps(now)
    seen.shape["state"] = _keys(now)
    seen.shape["status"] = _keys(json.loads(status))
    seen.shape["restarts"] = [entry["restarts"] for entry in now["services"]]
    written = [path for path in sorted(lab.run_dir.rglob("*")) if path.is_file() and "postgres" not in path.parts]
    seen.shape["files"] = sorted(str(path.relative_to(lab.run_dir)) for path in written)
    for path in written:
        seen.text += f"\n{path.relative_to(lab.run_dir)}\n"
        seen.text += path.read_bytes()[files_before.get(path, 0) :].decode(errors="replace")
    return seen


def _without_numbers(value: str) -> str:
    """A value without the parts that differ in each game: ports, and the names of private directories."""
    return re.sub(r"dicelab-\w+|\d+", "#", value)


def _keys(document: Any) -> Any:
    if isinstance(document, dict):
        # Whether a part is ready, and why not, is a symptom.
        return {key: _keys(value) for key, value in document.items() if key != "reason"}
    return [_keys(value) for value in document] if isinstance(document, list) else type(document).__name__


async def played(lab: Lab, fault: Fault, steady: float, seconds: float, looked: list[Seen]) -> Played:
    """A short game whose player looks at everything and then waits."""
    # Each game starts a new file of samples.
    sizes = {path: path.stat().st_size for path in lab.run_dir.rglob("*.jsonl") if path.parent.name != "metrics"}

    async def player(game: Game) -> None:
        await asyncio.sleep(steady + seconds / 2)
        looked.append(await asyncio.to_thread(look, lab, sizes))
        await asyncio.sleep(max(0.0, game.began + steady + seconds - time.time()))

    async with AnyLab.in_run_dir(lab.run_dir) as running:
        plan = draw(1, 1, Facets.of(running), [fault.situation.name], steady, 0.0)
        return await play(running, replace(plan, faults=(fault,)), player)


def resources(lab: Lab) -> Counter[str]:
    """Everything that a game could leave behind: processes, the supervisor's descriptors, files of the run dir."""
    descriptors = Path(f"/proc/{state(lab)['pid']}/fd").iterdir()
    files = (path.relative_to(lab.run_dir) for path in lab.run_dir.rglob("*") if path.is_file())
    found = Counter(f"descriptor {os.readlink(path).partition('[')[0]}" for path in descriptors if path.is_symlink())
    found["processes"] = sum(not command.startswith("postgres:") for command in labs.processes_of(lab.run_dir))
    found.update(f"file {path}" for path in files if path.parts[0] not in ("postgres", "metrics"))
    return found


def no_more_than(lab: Lab, before: Counter[str]) -> bool:
    with suppress(OSError):  # a descriptor that was closed meanwhile
        return resources(lab) <= before
    return False


async def test_only_symptoms_distinguish_faults_and_the_score_is_computed(lab: Lab, tmp_path: Path) -> None:
    before = resources(lab)
    restarts = {entry["name"]: entry["restarts"] for entry in state(lab)["services"]}
    looked: list[Seen] = []
    slow = await played(lab, Fault(SITUATIONS["die-service-slow"], {"seconds": DELAY}), STEADY, FAULT, looked)
    await asyncio.to_thread(wait_for, lambda: as_before(lab))
    after_one = {entry["name"]: entry["restarts"] for entry in state(lab)["services"]}
    assert {name: count - restarts[name] for name, count in after_one.items()} == dict.fromkeys(restarts, 2)
    weights = {"die": "fair", "face": 6, "share": 1.0}
    loaded = await played(lab, Fault(SITUATIONS["wrong-weights"], weights), 2.0, 5.0, looked)
    await asyncio.to_thread(wait_for, lambda: as_before(lab))

    assert slow.put_back
    assert loaded.put_back
    await asyncio.to_thread(wait_for, lambda: no_more_than(lab, before))
    with Tables.of(lab.run_dir) as tables:
        up = tables.query("SELECT epoch_ms(timestamp), service FROM samples WHERE name = 'up' AND value = 1").rows
    assert {(at, service) for at, service in up if at <= loaded.truth.ended * 1000} == {
        (round(one.at * 1000), one.service) for one in loaded.case.scrapes if one.at <= loaded.truth.ended
    }
    for seen in looked:
        assert VARIABLE in seen.text  # the player looked while the game ran
        assert not [secret for secret in SECRETS if secret in seen.text]
    one, other = (seen.shape for seen in looked)
    assert [count + 2 for count in one.pop("restarts")] == other.pop("restarts")
    assert one == other

    # The faults were real, and the right answers can be proven from the telemetry alone.
    assert slow.indicators["moved"], slow.indicators
    onset = slow.truth.onset
    assert onset is not None
    began = {trace: min(span.start for span in spans) / 1e9 for trace, spans in slow.case.traces.items()}
    during = [trace for trace, at in began.items() if onset + 0.5 < at < slow.truth.ended - 3 * DELAY]
    shown = [trace for trace in during if set(slow.truth.components) & anomaly(slow.case, slow.truth, trace)]
    assert len(shown) > len(during) / 2 > 3
    answer = Answer(
        slow.truth.components,
        slow.truth.mechanisms,
        onset + 1,
        slow.truth.impact,
        shown[-1],
        "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE service = 'dice-roller' AND kind = 'client'",
    )
    result = score(slow.case, slow.truth, answer)
    assert result.total == 100, result
    assert loaded.truth.onset is not None
    faces = {
        span.attributes["die.result"]
        for span in loaded.case.spans
        if span.attributes.get("die.type") == "fair"
        and "die.result" in span.attributes
        and span.start / 1e9 > loaded.truth.onset + 2
    }
    assert faces == {6}

    # The same case has the same score when it is read from files.
    files.prepare(tmp_path / "case")
    command.write(tmp_path / "case", slow)
    recorded = files.read(tmp_path / "case")
    assert score(recorded.case, recorded.truth, answer) == result
    assert {timed.service for timed in recorded.case.samples} == set(lab.services)
    scraped = [{(one.at, one.service) for one in case.scrapes} for case in (recorded.case, slow.case)]
    assert scraped[0] == scraped[1]
    for path in (tmp_path / "case" / "case").iterdir():
        if path.name != files.QUESTION:  # which lists all mechanisms
            assert not [secret for secret in SECRETS if secret in path.read_text()], path.name


async def sign_in(page: Page) -> None:
    """Sign in if the page asks for it, as it does after each restart of its service."""
    with suppress(PlaywrightError):  # the page may reconnect at the same time
        if await page.get_by_label("Your name").is_visible():
            await page.get_by_label("Your name").fill("alice", timeout=1000)
            await page.get_by_role("button", name="Sign in").click(timeout=1000)


async def test_a_game_is_played_in_the_page(lab: Lab, blank_page: Open) -> None:
    page = await blank_page(viewport={"width": 375, "height": 800})
    await page.goto(f"{lab.front}/?tab=learn")
    await sign_in(page)
    await page.locator("#mystery-level").select_option("1")
    await page.locator("#mystery-seed").fill(str(SEED))
    await page.locator("#mystery-within").fill("5")
    await page.get_by_role("button", name="Start a game").click()
    playing = page.locator("#mystery-playing")
    async with asyncio.timeout(120):
        while not await playing.is_visible():
            await sign_in(page)
            await asyncio.sleep(0.5)
    await expect(page.locator("#mystery-left")).to_have_text(re.compile(r"1[45]:\d\d"))
    assert await page.evaluate("document.documentElement.scrollWidth") <= 375
    assert await violations(page) == []
    other = (await asyncio.to_thread(dicelab("mystery", "--run-dir", lab.run_dir).communicate, timeout=60))[0].decode()
    assert other.splitlines()[-1] == "dicelab: another experiment runs in this lab"
    await page.locator("#mystery-pause").click()
    await expect(playing).to_contain_text("(paused)")
    await page.locator("#mystery-resume").click()
    await expect(playing).not_to_contain_text("(paused)")

    # An invalid answer costs nothing, and the form keeps it.
    plan = draw(SEED, 1, Facets.of(AnyLab.in_run_dir(lab.run_dir)), steady=2.5, uncertain=2.5)
    for field_id, value in (
        ("component", plan.components[0]),
        ("mechanism", plan.mechanisms[0]),
        ("impact", plan.impact),
    ):
        await page.locator(f"#mystery-{field_id}").select_option(value)
    await page.locator("#mystery-since").fill(f"+{plan.onset}")
    await page.locator("#mystery-query").fill("SELEC 1")
    answer = page.get_by_role("button", name="Answer", exact=True)
    await answer.click()
    await expect(page.locator("#mystery-said")).to_contain_text("query: Parser Error")
    await page.locator("#mystery-query").fill("SELECT count(*) FROM spans WHERE status = 'error'")
    result = page.locator("#mystery-result")
    async with asyncio.timeout(150):
        while not await result.is_visible():  # answers are accepted some time after the fault
            with suppress(PlaywrightError):  # the page reconnects when everything is restored
                if await playing.is_visible():
                    assert not [sentence for sentence in plan.story() if sentence in await page.content()]
                    await answer.click(timeout=1000)
            await sign_in(page)
            await asyncio.sleep(0.5)
    await expect(result).to_contain_text(plan.story()[0])
    await expect(result).to_contain_text(f"component: {plan.components[0]}; right is {plan.components[0]}")
    await expect(page.locator("#mystery-history")).to_be_visible()
    assert await violations(page) == []
    games = History(lab.run_dir).read()
    assert [(game["seed"], game["level"], game["given_up"]) for game in games] == [(SEED, 1, False)]
    assert games[0]["score"] >= 80
    await asyncio.to_thread(wait_for, lambda: as_before(lab))
    shutil.rmtree(lab.run_dir / "mystery")  # the tests below look for their own games


def wait_until_it_runs(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    def runs() -> bool:
        assert process.poll() is None, process.communicate()[0].decode()
        return all(VARIABLE in environ(lab, service) for service in lab.services)

    wait_for(runs)


def test_the_faults_of_a_killed_game_are_undone(lab: Lab, tmp_path: Path) -> None:
    game = dicelab("mystery", "--run-dir", lab.run_dir, "--answer", tmp_path / "answer.json")
    wait_until_it_runs(lab, game)
    arguments = Path(f"/proc/{game.pid}/cmdline").read_text() + Path(f"/proc/{game.pid}/environ").read_text()
    assert not [secret for secret in SECRETS if secret in arguments]
    second = dicelab("mystery", "--run-dir", lab.run_dir)
    assert second.communicate(timeout=60)[0].decode().splitlines()[-1] == (
        "dicelab: another experiment runs in this lab"
    )
    assert second.returncode == 1
    game.kill()
    game.communicate()
    wait_for(lambda: as_before(lab))
    assert get(f"{lab.url(ROLLER)}/roll?die=fair").status == 200
    assert not (lab.run_dir / "mystery").exists()  # neither game counts


def test_a_lab_that_is_stopped_meanwhile_ends_the_game(lab: Lab, tmp_path: Path) -> None:
    game = dicelab("mystery", "--run-dir", lab.run_dir, "--answer", tmp_path / "answer.json")
    wait_until_it_runs(lab, game)
    lab.stop()
    said = game.communicate(timeout=60)[0].decode()
    assert game.returncode == 1
    assert said.splitlines()[-1] in (
        "dicelab: the lab was stopped: this game does not count",
        # while it prepared the game:
        "dicelab: the lab has ended",
        f"dicelab: nothing runs in {lab.run_dir}; start it with dicelab up",
    )
    assert "Traceback" not in said
    assert not labs.processes_of(lab.run_dir)
