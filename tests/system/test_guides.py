"""The guides of the learning path: every command runs as written and prints the output shown."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from lab.diff.changes import text
from lab.diff.command import Options
from lab.diff.portrait import Portrait, portray
from lab.learn.catalogue import EXERCISES
from tests.support.guides import GUIDES, Command, Shell, blocks, commands, environment, matches
from tests.support.labs import free_base_port
from tests.support.queries import parse

pytestmark = pytest.mark.usefixtures("high_priority")

STAGES = range(1, 7)
EXPERIMENT = 5  # the guide with an experiment, which is sensitive to other load
SEED = Options(1, 2).seed
# The topics that the specification requires of each stage: four focus areas, and the secondary concepts.
TOPICS = {
    1: ("prometheus metric types (counter, histogram)", "json structured logging format", "traces in grafana tempo",
        "basic promql queries", "automatic instrumentation", "json logging"),
    2: ("w3c trace context format", "http header-based context propagation", "distributed trace waterfalls",
        "service dependency visualization", "trace propagation", "w3c standard"),
    3: ("multi-service trace analysis", "bottlenecks in trace waterfalls", "service-to-service metrics patterns",
        "complex logql queries", "service maps", "complex dependencies"),
    4: ("parent/child span relationships", "concurrent and overlapping spans", "performance comparison methodologies",
        "async instrumentation patterns", "parent/child spans", "concurrency"),
    5: ("database span interpretation", "connection pool monitoring", "identify slow queries in traces",
        "database resilience testing", "auto-instrumentation limits", "sql spans"),
    6: ("alloy filtering and routing", "separate operational from business metrics", "usage analytics patterns",
        "multi-destination log routing", "content-based routing", "analytics"),
}  # fmt: skip

Outcome = list[tuple[Command, int, str]]


def guide(stage: int) -> str:
    return GUIDES[stage - 1].read_text()


def follow(stage: int, directory: Path) -> Outcome:
    """Run the commands of a guide up to the first that fails, and stop its lab whatever happens."""
    shell = Shell(directory, free_base_port(), **environment())
    outcome: Outcome = []
    try:
        for command in commands(guide(stage)):
            if command.text.startswith("dicelab diff"):
                continue  # see below
            status, printed = shell.run(command.text)
            outcome.append((command, status, printed))
            if status:
                break
    finally:
        shell.run("dicelab down")
        shell.close()
        shutil.rmtree((directory / ".dicelab" / "postgres").resolve(), ignore_errors=True)
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Future[Outcome]]]:
    """The output of the commands of each guide. Two guides run at a time; the one with an experiment runs alone."""
    directories = {stage: tmp_path_factory.mktemp(f"guide{stage}") for stage in STAGES}
    with ThreadPoolExecutor(2) as pair, ThreadPoolExecutor(1) as single:
        found = {stage: pair.submit(follow, stage, directories[stage]) for stage in STAGES if stage != EXPERIMENT}
        others = [*found.values()]

        def follow_alone() -> Outcome:
            wait(others)
            return follow(EXPERIMENT, directories[EXPERIMENT])

        yield found | {EXPERIMENT: single.submit(follow_alone)}


@pytest.fixture(scope="module")
def portraits(outcomes: dict[int, Future[Outcome]]) -> list[Portrait]:
    """The portrait that ``dicelab diff`` takes of each stage, once the guides' labs have stopped."""
    for outcome in outcomes.values():
        outcome.exception()
    return [portrait for half in ((1, 2, 3), (4, 5, 6)) for portrait in asyncio.run(portray(half, SEED))]


def test_each_stage_has_a_guide_of_readable_length() -> None:
    assert [path.name[:2] for path in GUIDES] == [f"{stage}-" for stage in STAGES]
    for path in GUIDES:
        assert 150 <= len(path.read_text().splitlines()) <= 300, path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_commands_print_the_output_shown(outcomes: dict[int, Future[Outcome]], stage: int) -> None:
    outcome = outcomes[stage].result()
    for command, status, printed in outcome:
        assert status == 0, f"{command.text}\n{printed}"
        assert matches(command.output, printed), f"$ {command.text}\n{printed}\nis not what is shown:\n{command.output}"
    first, last = outcome[0][0].text, outcome[-1][0].text
    assert first.startswith(f"dicelab up --stage {stage} ")
    assert last == "dicelab down"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_what_changed_is_the_output_of_diff(portraits: list[Portrait], stage: int) -> None:
    (shown,) = (command for command in commands(guide(stage)) if command.text.startswith("dicelab diff"))
    assert shown.text == f"dicelab diff {stage - 1} {stage}"
    assert shown.output.splitlines() == text(portraits[stage - 2], portraits[stage - 1])


@pytest.mark.parametrize("stage", STAGES)
def test_a_guide_covers_the_topics_of_its_stage(stage: int) -> None:
    text = " ".join(guide(stage).replace("*", "").lower().split())
    for topic in TOPICS[stage]:
        assert topic in text, topic


@pytest.mark.parametrize("stage", STAGES)
def test_a_guide_has_its_sections_and_its_four_exercises(stage: int) -> None:
    headings = re.findall(r"^## (.*)", guide(stage), re.MULTILINE)
    assert headings == ["The idea", "Look", "Do", "Exercises", "What changed", "Read on"]
    exercises = guide(stage).split("\n## Exercises")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d\.\d)†? [^|]+\| [^|]+\?? [^|]*\| `dicelab learn (\d\.\d)` \|$", exercises, re.MULTILINE)
    assert rows == [(f"{stage}.{number}",) * 2 for number in range(1, 5)]
    assert [number for number in EXERCISES if number.startswith(f"{stage}.")] == [number for number, _ in rows]


@pytest.mark.parametrize("stage", STAGES)
def test_links_lead_to_existing_files_and_headings(stage: int) -> None:
    for path, anchor in re.findall(r"\]\((?!http)([\w./-]+)(?:#([\w-]+))?\)", guide(stage)):
        target = GUIDES[stage - 1].parent / path
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(re.findall(r"\]\(https://", guide(stage))) >= 6


def test_queries_of_the_guides_are_valid() -> None:
    found = [
        (language, query)
        for stage in STAGES
        for language in ("promql", "logql", "traceql")
        for query in blocks(guide(stage), language)
    ]
    assert {language for language, _ in found} == {"promql", "logql", "traceql"}
    for (_, query), parsed in zip(found, parse(found), strict=True):
        assert not parsed.errors, query


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a … c", "a b c\n", True),
        ("a …", "a\n", False),
        ("a  b", "a b\n", True),
        ("a\n…\nz", "a\nb\nc\nz\n", True),
        ("a\n…\nz", "a\nz", True),
        ("a", "a\nb\n", False),
        ("a\n…", "a\n", True),
        ("…", "", True),
        ("", "a\n", False),
        ("1.0", "1x0\n", False),
        ("a…c", "ab\nbc\n", False),
    ],
)
def test_the_notation_for_variable_output(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_a_command_continues_while_a_quote_is_open() -> None:
    text = "```console\n$ a 'b\n  c' \\\n  d\n1\n$ e\n```\n```sh\n$ no\n```\n"
    assert list(commands(text)) == [Command("a 'b\n  c' \\\n  d", "1"), Command("e", "")]
