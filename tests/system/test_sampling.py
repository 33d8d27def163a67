"""``SAMPLING=tail``: the Collector keeps failed and slow traces and a tenth of the others, and counts all of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from lab.client import SAMPLING_METRICS
from lab.client import Lab as AnyLab
from lab.mystery.game import Game, play
from lab.mystery.plan import draw
from lab.mystery.situations import Facets
from lab.paths import COLLECTOR
from lab.signals import parse_export, parse_time
from lab.supervise import engines, stages
from lab.supervise.engines_plan import plan_engines
from tests.support import labs
from tests.support.labs import Lab, dicelab, get, wait_for

TAIL = COLLECTOR / "sampling" / "tail.yaml"
HEALTHY, FAILED, SLOW = 400, 20, 20
BATCH = 50  # traces in one request


def collector() -> str | None:
    """A Collector on PATH that has what tail sampling needs."""
    (engine,) = (engine for engine in engines.ENGINES if engine.name == "otel-collector")
    binary = engine.find()
    return binary if binary and engines.components(binary) >= engines.TAIL_COMPONENTS else None


needs_collector = pytest.mark.skipif(collector() is None, reason="no Collector with tail sampling on PATH")


@needs_collector
@pytest.mark.parametrize("sampling", ["none", "tail"])
def test_the_collector_accepts_its_configuration(tmp_path: Path, sampling: str) -> None:
    plan = plan_engines(stages.load(6), 8000, tmp_path, tmp_path, sampling=sampling)
    variables = plan.variables("")
    (tmp_path / "otel-collector").mkdir()
    (engine,) = (engine for engine in engines.ENGINES if engine.name == "otel-collector")
    binary, *arguments = plan.command(engine, str(collector()), variables)
    checked = subprocess.run(
        [binary, "validate", *arguments], env=variables, check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_both_generators_count_in_the_same_buckets() -> None:
    """Tempo's defaults, ExponentialBuckets(0.1, 2, 8) and (0.002, 2, 14) in seconds; a panel may show either."""
    connectors = yaml.safe_load(TAIL.read_text())["connectors"]
    assert connectors["servicegraph"]["latency_histogram_buckets"] == [f"{100 * 2**power}ms" for power in range(8)]
    buckets = connectors["spanmetrics"]["histogram"]["explicit"]["buckets"]
    assert buckets == [f"{2 * 2**power}ms" for power in range(14)]


def test_kept_traces_are_sent_in_batches() -> None:
    """They come one by one, and the queue for Tempo holds 2000 requests, which fill it in a minute while rolls fail."""
    pipeline = yaml.safe_load(TAIL.read_text())["service"]["pipelines"]["traces"]["processors"]
    assert pipeline[pipeline.index("tail_sampling") + 1] == "batch"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if collector() is None or not all(
        engine.find() for engine in engines.ENGINES if engine.name in ("tempo", "prometheus")
    ):
        pytest.skip("no Tempo, Prometheus or Collector with tail sampling on PATH")
    running = labs.start(
        tmp_path_factory.mktemp("sampling") / "run", 3, "--engines", "--sampling", "tail", OTEL_BSP_SCHEDULE_DELAY="300"
    )
    yield running
    running.stop()


def url(lab: Lab, engine: str) -> str:
    return str(next(entry["url"] for entry in lab.state["engines"] if entry["name"] == engine))


def value(lab: Lab, expression: str) -> float:
    response = get(f"{url(lab, 'prometheus')}/api/v1/query?{urlencode({'query': expression})}").json
    return sum(float(row["value"][1]) for row in response["data"]["result"])


def send(lab: Lab, kinds: Mapping[str, str]) -> None:
    """Send traces of two services, ``caller`` and ``callee``, to the Collector; ``kinds``: healthy, failed or slow.

    The callee calls a database, and a server without spans.
    """
    now = time.time_ns()

    def span(trace_id: str, number: int, kind: int, parent: str = "", **attributes: str) -> dict[str, Any]:
        how = kinds[trace_id]
        return {
            "traceId": trace_id,
            "spanId": f"{trace_id[:15]}{number}",
            "parentSpanId": parent,
            "name": "GET /sampled",
            "kind": kind,
            "attributes": [
                {"key": name.replace("_", "."), "value": {"stringValue": text}} for name, text in attributes.items()
            ],
            "startTimeUnixNano": str(now - (2 * 10**9 if how == "slow" else 10**8)),
            "endTimeUnixNano": str(now),
            # The root has no error: only the span below it failed.
            "status": {"code": 2 if how == "failed" and kind == 2 else 0},
        }

    ids = list(kinds)
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        spans = {
            "caller": [span(trace_id, 1, 3) for trace_id in some],
            "callee": [
                one
                for trace_id in some
                for one in (
                    span(trace_id, 2, 2, f"{trace_id[:15]}1"),
                    span(trace_id, 3, 3, f"{trace_id[:15]}2", db_system_name="postgresql", server_address="storage"),
                    span(trace_id, 4, 3, f"{trace_id[:15]}2"),
                )
            ],
        }
        document = {
            "resourceSpans": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
                    "scopeSpans": [{"scope": {"name": "test"}, "spans": each}],
                }
                for service, each in spans.items()
            ]
        }
        request = urllib.request.Request(
            f"{lab.state['otlp_endpoint']}/v1/traces",
            json.dumps(document).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200


def kept(lab: Lab, ids: list[str]) -> set[str]:
    """The traces that Tempo has with all their spans; for others its response is empty."""
    responses = {one: get(f"{url(lab, 'tempo')}/api/v2/traces/{one}") for one in ids}
    return {
        one
        for one, response in responses.items()
        if response.status == 200 and len(parse_export(response.json.get("trace", {}))) == 4
    }


def test_failed_and_slow_traces_are_kept_and_a_tenth_of_the_others(lab: Lab) -> None:
    kinds = {
        hashlib.sha256(f"{how} {number}".encode()).hexdigest()[:32]: how
        for how, count in (("healthy", HEALTHY), ("failed", FAILED), ("slow", SLOW))
        for number in range(count)
    }
    by_kind = {how: [one for one in kinds if kinds[one] == how] for how in ("healthy", "failed", "slow")}
    rolls = 30
    before = lab.value("dice-roller", "http_requests_total", handler="/roll")
    send(lab, kinds)
    for _ in range(rolls):
        assert get(f"{lab.front}/roll?die=fair").status == 200
    must = [*by_kind["failed"], *by_kind["slow"]]
    wait_for(lambda: kept(lab, must) == set(must), timeout=60, say="all failed and all slow traces in Tempo")
    # The decisions on the healthy ones were made at the same time. 40 are expected; the ids are fixed, so that the
    # result is the same each time, and within four standard deviations of a binomial distribution: 6 each.
    healthy = len(kept(lab, by_kind["healthy"]))
    assert 16 <= healthy <= 64, healthy

    # Every request is counted before the decision, with the names and labels of Tempo's metrics generator.
    def calls(**labels: str) -> float:
        conditions = ",".join(f'{name}="{wanted}"' for name, wanted in labels.items())
        return value(lab, f"traces_spanmetrics_calls_total{{{conditions}}}")

    def edges(metric: str = "request_total") -> float:
        return value(lab, f'traces_service_graph_{metric}{{client="caller",server="callee",connection_type=""}}')

    wait_for(lambda: edges() == len(kinds), timeout=60, say=f"{len(kinds)} requests from caller to callee")
    assert edges("request_failed_total") == FAILED
    assert value(lab, 'traces_service_graph_request_total{client="callee",connection_type="database"}') == len(kinds)
    assert value(lab, 'traces_service_graph_request_total{client="callee",server="storage"}') == len(kinds)
    assert edges("request_server_seconds_count") == edges("request_client_seconds_count") == len(kinds)
    assert (
        value(lab, 'sum(traces_service_graph_request_server_seconds_bucket{client="caller",le="1.6"})')
        == HEALTHY + FAILED
    )
    assert calls(service="callee", span_name="GET /sampled", span_kind="SPAN_KIND_SERVER") == len(kinds)
    assert calls(service="callee", status_code="STATUS_CODE_ERROR") == FAILED
    of_server = 'service="callee",span_kind="SPAN_KIND_SERVER"'
    assert value(lab, f'traces_spanmetrics_latency_bucket{{{of_server},le="2.048"}}') == len(kinds)
    names = {"service": "dice-roller", "span_name": "GET /roll", "span_kind": "SPAN_KIND_SERVER"}
    wait_for(
        lambda: calls(**names) == lab.value("dice-roller", "http_requests_total", handler="/roll"),
        timeout=60,
        say="every request of the dice-roller in the span metrics",
    )
    assert calls(**names) >= before + rolls
    kinds_seen = get(f"{url(lab, 'prometheus')}/api/v1/label/span_kind/values").json["data"]
    assert set(kinds_seen) == {"SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"}


def test_a_check_of_a_url_knows_that_the_collector_samples(lab: Lab) -> None:
    """It reads no state file then, and the healthy trace of its roll is seldom kept."""
    wait_for(lambda: value(lab, f"count({SAMPLING_METRICS})"), timeout=60, say="the Collector's metrics")
    command = dicelab("check", "--run-dir", lab.run_dir, "--stage", "3", "--url", lab.front)
    output, _ = command.communicate(timeout=110)
    assert command.returncode == 0, output.decode()
    assert "✘" not in output.decode()


def test_the_service_map_is_made_once(lab: Lab) -> None:
    """Tempo's generator is off, because it would count the kept traces again."""
    get(f"{lab.front}/roll?die=fair")
    wait_for(
        partial(value, lab, 'traces_service_graph_request_total{client="frontend",server="dice-roller"}'), timeout=60
    )
    derived = urlencode({"match[]": '{__name__=~"traces_.+"}'})
    series = get(f"{url(lab, 'prometheus')}/api/v1/series?{derived}").json["data"]
    labels = {label for one in series for label in one} - {"__name__", "le"}
    # Those of Tempo's generator, and `failed`.
    assert labels - {"connection_type"} == {
        *("client", "server", "failed"),
        *("service", "span_name", "span_kind", "status_code"),
    }
    assert {one["__name__"].split("_")[1] for one in series} == {"service", "spanmetrics"}
    # As with Tempo's generator, a call without a server's span is no edge.
    assert {one["server"] for one in series if "server" in one} >= {"callee", "dice-roller", "storage"}
    assert not [one for one in series if one.get("server") == "unknown"]


@pytest.mark.timeout(300)  # the game restarts all services twice
async def test_a_mystery_waits_for_the_decision_about_its_last_traces(lab: Lab) -> None:
    """Without that wait the case would not have the traces of the last ten seconds."""

    async def player(game: Game) -> None:
        await asyncio.sleep(12)

    async with AnyLab.in_run_dir(lab.run_dir) as running:
        plan = draw(1, 1, Facets.of(running), ["die-service-down"], steady=3.0, uncertain=0.0)
        played = await play(running, plan, player)
    ended = played.truth.ended
    failed = {
        line["trace_id"]
        for line in played.case.lines
        if line["level"] == "ERROR" and ended - 8 < parse_time(line["timestamp"]) < ended - 2 and line.get("trace_id")
    }
    assert len(failed) > 10
    assert len(failed & set(played.case.traces)) > len(failed) / 2
