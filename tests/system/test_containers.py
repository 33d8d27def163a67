"""The compose project as ``make compose`` runs it, in stand-ins for its images, from a checkout under umask 077."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlencode

import pytest

from lab.chaos.targets import PSQL
from lab.supervise import engines, stages
from tests.support import containers
from tests.support.containers import Containers
from tests.support.labs import get, wait_for

PORTS = {name: 8000 + engines.FIRST_PORT + index for index, name in enumerate(engines.PORTS)}
FRONT = "http://127.0.0.1:8002"

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with ExitStack() as stack:
        try:
            project = stack.enter_context(containers.project(tmp_path_factory.mktemp("containers")))
        except containers.Unavailable as error:
            pytest.skip(str(error))
        yield project


@pytest.mark.parametrize("stage", [1, 3, 6])
def test_a_stage_is_healthy_and_complete(project: Containers, stage: int) -> None:
    started = time.monotonic()
    project.make("compose", f"STAGE={stage}")  # waits until all are healthy
    print(f"\nstage {stage}: all healthy after {time.monotonic() - started:.0f} s")
    running = project.inspect()
    wanted = {service.name for service in stages.load(stage).services} | {engine.name for engine in engines.ENGINES}
    wanted ^= set() if stages.load(stage).postgres else set(engines.WITH_POSTGRES)
    wanted |= {"postgres"} if stages.load(stage).postgres else set()
    assert running.keys() == wanted - project.left_out.keys()
    for name, container in running.items():
        assert container["State"]["Running"], name
        assert container["RestartCount"] == 0, name
    checked = project.dicelab("check", "--compose", f"--stage={stage}", "--timeout=60")
    assert checked.returncode == 0, f"{checked.stdout}\n{checked.stderr}\n{project.last_lines()}"


def test_no_service_is_left_out(project: Containers) -> None:
    """Names in the summary of the tests the services that the other tests left out."""
    if project.left_out:
        pytest.skip("; ".join(f"{service} is left out: {why}" for service, why in project.left_out.items()))


def test_down_and_up_keep_the_data_and_tail_sampling_starts(project: Containers) -> None:
    project.make("compose", "STAGE=6")
    trace_id = get(f"{FRONT}/roll?die=fair").trace_id
    tempo, loki, prometheus = (
        f"http://127.0.0.1:{PORTS[name]}" for name in ("TEMPO_PORT", "LOKI_PORT", "PROMETHEUS_PORT")
    )
    start = time.time()

    def wait(condition: Callable[[], bool]) -> None:
        try:
            wait_for(condition, timeout=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{project.last_lines()}") from None

    def in_tempo() -> bool:
        return get(f"{tempo}/api/v2/traces/{trace_id}").status == 200

    def in_loki() -> bool:
        arguments = {"query": f'{{service_name="dice-roller"}} |= "{trace_id}"', "start": int(start - 600)}
        url = f"{loki}/loki/api/v1/query_range?{urlencode(arguments)}"
        return bool(get(url, headers={"X-Scope-OrgID": "operations"}).json["data"]["result"])

    def in_prometheus(query: str, at: float) -> bool:
        arguments = urlencode({"query": f"{query} > 0", "time": at})
        return bool(get(f"{prometheus}/api/v1/query?{arguments}").json["data"]["result"])

    rolls = 'dice_rolls_total{job="dice-roller",die_type="fair",result="success"}'
    wait(in_tempo)
    wait(in_loki)
    wait(lambda: in_prometheus(rolls, time.time()))
    scraped = time.time()
    postgres = project.inspect()["postgres"]["Id"]
    project.run("exec", postgres, *PSQL, "CREATE TABLE kept AS SELECT 42 AS answer")

    project.make("compose-down")
    assert not project.inspect()
    # With tail sampling, which is tested in the same start because each start takes long.
    project.make("compose", "STAGE=6", "SAMPLING=tail")

    wait(in_tempo)
    wait(in_loki)
    wait(lambda: in_prometheus(rolls, scraped))
    postgres = project.inspect()["postgres"]["Id"]
    assert "42" in project.run("exec", postgres, *PSQL, "SELECT answer FROM kept")

    assert get(f"{FRONT}/roll?die=fair").status == 200
    # Only the Collector's edges have the label `failed`; those of Tempo's generator are older.
    edges = 'traces_service_graph_request_total{client="frontend",server="dice-roller",failed!=""}'
    wait(lambda: in_prometheus(edges, time.time()))
