"""The telemetry of running labs is in the registry, according to the lab's own judge and, if installed, Weaver."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.schema import weaver as samples
from lab.schema.command import Seen, look
from lab.schema.judge import Judge
from lab.schema.registry import Registry
from lab.signals import Span, parse_line
from tests.support import labs, schema
from tests.support.labs import Held, Lab, dicelab, get, sign_in, wait_for
from tests.support.matrix import STAGES, has, spans_of
from tests.support.schema import MISTAKES

REGISTRY = Registry.read()
# Short, so that requests without a response time out soon.
PATIENCE = {
    "DIE_SERVICE_TIMEOUT": "0.3",
    "ROLLER_TIMEOUT": "0.6",
    "DB_CONNECT_TIMEOUT": "0.3",
    "DB_QUERY_TIMEOUT": "0.3",
}
BAD_INPUT = (
    *("/roll", "/roll?die=nosuch", "/roll?die=", "/roll?die=%FF", "/nowhere"),
    *("/roll-async?die=nosuch&times=2", "/roll-async?die=fair&times=0"),
)


def ask(lab: Lab, path: str, status: int) -> None:
    """Request a path of the lab's front until it returns this status, which may take several attempts."""
    wait_for(lambda: get(lab.front + path).status == status, say=f"{status} from {path}")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def exercise(lab: Lab) -> None:
    """Success, designed failure, bad input, timeout and the loss of the database, as far as the stage has them."""
    stage = lab.stage
    ask(lab, "/roll?die=fair", 200)
    ask(lab, "/roll?die=risky", 500)
    for service in lab.services:
        for path in BAD_INPUT:
            get(lab.url(service) + path)
        get(lab.url(service) + "/", method="POST")
        get(lab.url(service) + "/", headers={"Host": "elsewhere.example"})
    if has("GET /roll-async", stage):
        ask(lab, "/roll-async?die=fair&times=3", 200)
        ask(lab, "/roll-async?die=extreme&times=5", 500)
    if has("usage tracking logs", stage):
        cookie = {"Cookie": sign_in(lab)}
        get(f"{lab.front}/roll?die=fair", headers=cookie)
        get(f"{lab.front}/sign-out", method="POST", headers=cookie)
    elif has("frontend", stage):
        get(lab.front + "/")
    if has("die service", stage):
        get(lab.url("die-service") + "/dice")
        with stopped(lab.pid("die-service")):
            ask(lab, "/roll?die=fair", 504)
    elif has("frontend", stage):
        with stopped(lab.pid("dice-roller")):
            ask(lab, "/roll?die=fair", 504)
    if has("postgres", stage):
        with closing(Held(lab, "postgres")):
            ask(lab, "/roll?die=fair", 503)
        ask(lab, "/roll?die=fair", 200)
    lab.settle()


KINDS = [(stage, telemetry) for stage in STAGES for telemetry in ("standard", "fast")]  # of labs, as the tests come
SEEN: dict[tuple[int, str], Seen] = {}


def observe(run_dir: Path, stage: int, telemetry: str) -> tuple[Seen, Judge]:
    """The telemetry of a lab with this stage and package, and the judge that has checked it."""
    lab = labs.start(run_dir, stage, roll_delay=0.0, TELEMETRY=telemetry, **PATIENCE)
    try:
        exercise(lab)
        # The last spans are exported when the services end; the metrics exist only while they run.
        running = asyncio.run(_look(lab))
    finally:
        lab.stop()
    SEEN[stage, telemetry] = found = Seen(lab.spans(), [*map(parse_line, _lines(lab))], running.metrics)
    return found, found.judge(REGISTRY, stage, list(lab.services))


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, str], tuple[Seen, Judge]]]:
    """Call :func:`observe`, and start the next lab meanwhile, because each lab mostly waits."""
    directory = tmp_path_factory.mktemp("schema")
    begun: dict[tuple[int, str], Future[tuple[Seen, Judge]]] = {}
    with ThreadPoolExecutor(2) as pool:

        def of_kind(*kind: Any) -> tuple[Seen, Judge]:
            for stage, telemetry in KINDS[KINDS.index(kind) :][:2]:
                if (stage, telemetry) not in begun:
                    run_dir = directory / f"{stage}-{telemetry}"
                    begun[stage, telemetry] = pool.submit(observe, run_dir, stage, telemetry)
            return begun[kind].result()

        yield of_kind


@pytest.fixture(params=STAGES)
def seen(
    request: pytest.FixtureRequest, telemetry: str, observed: Callable[[int, str], tuple[Seen, Judge]]
) -> tuple[Seen, Judge]:
    return observed(request.param, telemetry)


async def _look(lab: Lab) -> Seen:
    async with lab:
        return await look(lab)


def _lines(lab: Lab) -> list[str]:
    return [text for service in lab.services for text in lab.log_lines(service)]


def test_the_telemetry_of_a_lab_does_not_violate_the_registry(seen: tuple[Seen, Judge]) -> None:
    shown, judge = seen
    assert [str(finding) for finding in judge.findings] == []
    assert judge.unstable <= {
        *("db.response.returned_rows", "session.id", "user.name"),
        *("process.pid", "process.runtime.name", "process.runtime.version"),
    }
    spans, _, metrics = judge.coverage()
    assert spans.unseen == ()
    assert metrics.unseen == ()
    assert any(span.events for span in shown.spans)


def test_the_command_shows_what_was_seen_and_each_violation(own_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = own_lab(6, roll_delay=0.0)
    trace_id = get(f"{lab.front}/roll?die=fair").trace_id
    lab.trace(trace_id, spans_of(6))
    file = tmp_path / "samples.json"
    process = dicelab("check", "--schema", "--samples", file, "--run-dir", lab.run_dir)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert re.search(r"Seen: \d+ spans, \d+ lines, \d+ samples", output)
    assert re.search(r"metrics +(\d+) of +\1 declared for stage 6 were seen", output)
    assert output.rstrip().endswith("No violation of the registry.")
    assert file.stat().st_size > 1000
    # Checked as stage 3, the same lab violates the registry with the telemetry of later stages.
    process = dicelab("check", "--schema", "--stage", "3", "--run-dir", lab.run_dir)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1, output
    assert re.search(
        r"✘ wrong_stage: die-service span 'SELECT' \(client\): comes with stage 5 \(.*trace [0-9a-f]{32}\)", output
    )


def test_the_files_of_an_earlier_lab_are_not_compared(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    earlier = labs.start(run_dir, 4, roll_delay=0.0)
    get(f"{earlier.front}/roll-async?die=fair&times=3")
    earlier.stop()
    lab = labs.start(run_dir, 1, roll_delay=0.0)
    try:
        assert any(line.message == "Batch completed" for line in lab.lines("dice-roller"))
        get(f"{lab.front}/roll?die=fair")
        process = dicelab("check", "--schema", "--run-dir", lab.run_dir)
        output = process.communicate(timeout=60)[0].decode()
    finally:
        lab.stop()
    assert process.returncode == 0, output
    assert output.rstrip().endswith("No violation of the registry.")


# --- Weaver ---


@pytest.fixture(scope="module")
def local_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return schema.local_registry(tmp_path_factory.mktemp("weaver"))


def test_weaver_accepts_the_registry(local_registry: Path) -> None:
    ended = schema.run("registry", "check", "--registry", local_registry, "--diagnostic-format", "json")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_weaver_finds_no_violation_in_the_telemetry_of_labs(local_registry: Path, tmp_path: Path) -> None:
    schema.needed()
    if not SEEN:
        pytest.skip("the tests above did not run")
    shown: list[dict[str, Any]] = []
    for one in SEEN.values():
        shown += samples.samples(REGISTRY, one.spans, one.lines, one.metrics)
    report = schema.live_check(local_registry, shown, tmp_path)
    violations = [one["message"] for one in schema.advice(report) if one["level"] == "violation"]
    assert sorted(set(violations)) == []


def test_weaver_finds_the_deliberate_mistakes(local_registry: Path, tmp_path: Path) -> None:
    planted: list[dict[str, Any]] = []
    rows: list[int] = []  # the mistake that a sample belongs to
    for number, (_, mistake, _, _) in enumerate(MISTAKES):
        spans = [mistake] if isinstance(mistake, Span) else []
        pages = {"dice-roller": mistake} if isinstance(mistake, str) else {}
        lines = [] if isinstance(mistake, Span | str) else [mistake]
        found = samples.samples(REGISTRY, spans, lines, pages)
        planted += found
        rows += [number] * len(found)
    report = schema.live_check(local_registry, planted, tmp_path)
    for number, (name, _, kind, by_weaver) in enumerate(MISTAKES):
        advice = schema.advice([sample for sample, row in zip(report, rows, strict=True) if row == number])
        if by_weaver:
            assert kind in {one["id"] for one in advice}, name
        else:
            assert not [one for one in advice if one["level"] == "violation"], name
