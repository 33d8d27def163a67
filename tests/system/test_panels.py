"""The panels of stage 6 against the client's own counts: a seeded run, then the same without a database.

Every expected value is computed from the responses that the client got. Prometheus runs the panels' own queries; their
rates are taken over a window that holds exactly one of the two runs.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import mean, quantiles
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support import labs
from tests.support.labs import Held, Lab, get, wait_for
from tests.support.queries import fill, panels

DICE = ("fair", "risky", "extreme", "nosuch")
BUDGET = {"fair": 0.0, "risky": 0.12, "extreme": 0.55}  # as compose/prometheus/rules/slo.yml has them
SCRAPE = 1.0  # seconds
LOST = 20  # requests of the second run
STAGE_6 = {panel["title"]: panel for panel in panels("stage-6")}


@dataclass(frozen=True)
class RollResponse:
    """One response, as the client saw it. ``faces`` holds ``None`` for a roll that failed."""

    die: str
    times: int | None
    status: int
    seconds: float
    at: float
    faces: tuple[int | None, ...] = ()

    @property
    def route(self) -> str:
        return "/roll" if self.times is None else "/roll-async"

    @property
    def label(self) -> str:
        return "unknown" if self.die == "nosuch" else self.die

    @property
    def series(self) -> set[tuple[str, int]]:
        """What tells the series apart that count this response: the die and the status, the route and the status."""
        return {(self.label, self.status), (self.route, self.status)}


def ask(lab: Lab, die: str, times: int | None) -> RollResponse:
    started = time.time()
    path = f"/roll?die={die}" if times is None else f"/roll-async?die={die}&times={times}"
    response = get(lab.front + path)
    faces: tuple[int | None, ...] = ()
    if response.status == 200:
        faces = (response.json["roll"],) if times is None else tuple(response.json["rolls"])
    elif response.status == 500:
        faces = (None,) if times is None else tuple(response.json["rolls"])
    return RollResponse(die, times, response.status, time.time() - started, started, faces)


@dataclass
class Run:
    """A run: its responses, and a window that contains this run only."""

    responses: list[RollResponse]
    window: int  # seconds
    end: float
    everything: list[RollResponse]  # since the lab was started
    lab: Lab = field(repr=False)

    def series(self, title: str) -> dict[str, tuple[str, float]]:
        """The panel's values at the end of the run: legend → (refId, value)."""
        panel = STAGE_6[title]
        found = {}
        url = next(entry["url"] for entry in self.lab.state["engines"] if entry["name"] == "prometheus")
        for target in panel["targets"]:
            expression = fill(target["expr"].replace("$__rate_interval", f"{self.window}s"))
            response = get(f"{url}/api/v1/query?{urlencode({'query': expression, 'time': self.end})}").json
            assert response["status"] == "success", (title, response)
            for row in response["data"]["result"]:
                legend = target["legendFormat"]
                for label in re.findall(r"\{\{(\w+)\}\}", legend):
                    legend = legend.replace(f"{{{{{label}}}}}", row["metric"].get(label, ""))
                found[legend] = (target["refId"], float(row["value"][1]))
        return found

    def values(self, title: str) -> dict[str, float]:
        """Legend → value, without values that are zero or not a number."""
        return {name: value for name, (_, value) in self.series(title).items() if value and not math.isnan(value)}

    def counts(self, title: str) -> dict[str, float]:
        """The counts in the run, from a panel of rates."""
        return {name: value * self.window for name, value in self.values(title).items()}

    def colours(self, title: str) -> set[str]:
        """The colours in which Grafana shows the panel's values."""
        return {colour(STAGE_6[title], name, value) for name, value in self.series(title).values()}


def colour(panel: dict[str, Any], ref_id: str, value: float) -> str:
    thresholds = panel["fieldConfig"]["defaults"]["thresholds"]
    for override in panel["fieldConfig"].get("overrides", []):
        if override["matcher"]["options"] == ref_id:
            thresholds = next(p["value"] for p in override["properties"] if p["id"] == "thresholds")
    reached = [step["color"] for step in thresholds["steps"] if step["value"] is None or step["value"] <= value]
    return str(reached[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Run]]:
    """The healthy run, and the one without a database."""
    directory = tmp_path_factory.mktemp("panels")
    lab = labs.start(directory / "run", 6, "--engines", roll_delay=0.05, RANDOM_SEED="7")
    try:
        config = lab.run_dir / "engines" / "prometheus" / "config"
        targets = json.loads((config / "targets" / "lab.yml").read_text())
        for target in targets:
            if target["labels"]["job"] == "postgres-exporter":  # it needs a second to notice that its database is down
                target["labels"] |= {"__scrape_interval__": "3s", "__scrape_timeout__": "3s"}
        (config / "targets" / "lab.yml").write_text(json.dumps(targets))
        labs.scrape_every_second(lab)
        everything: list[RollResponse] = []

        def ask_all(asked: list[tuple[str, int | None]]) -> list[RollResponse]:
            with ThreadPoolExecutor(8) as pool:
                responses = list(pool.map(lambda one: ask(lab, *one), asked))
            everything.extend(responses)
            return responses

        def run(asked: list[tuple[str, int | None]]) -> Run:
            began = time.time()
            responses = ask_all(asked)
            # The window is long, so that the scrape by which it misses its edges matters little.
            time.sleep(12 * SCRAPE)
            end = time.time()
            return Run(responses, math.ceil(end - began + SCRAPE), end, list(everything), lab)

        prometheus = next(entry["url"] for entry in lab.state["engines"] if entry["name"] == "prometheus")
        zero = urlencode({"query": 'roll_requests_total{outcome="success"} == 0'})
        wait_for(lambda: len(get(f"{prometheus}/api/v1/query?{zero}").json["data"]["result"]) == 2, say="a scrape")

        # A series that begins with its first event shows no rate for that event: each die must have had each of its
        # outcomes before. Of twenty rolls of the risky die, one fails nearly always; of a hundred, always.
        ask_all([(die, times) for die in DICE for times in (None, 2)] * 3)
        ask_all([(die, times) for die in ("risky", "extreme") for times in (None, None, None, 20)] * 5)
        time.sleep(4 * SCRAPE)
        plan: list[tuple[str, int | None]] = [(die, None) for die in DICE for _ in range(25)]
        plan += [(die, times) for die in DICE for times in (1, 2, 5, 10, 20)]
        begun = set().union(*(response.series for response in everything))
        healthy = run(plan)
        assert all(response.series <= begun for response in healthy.responses)
        time.sleep(4 * SCRAPE)
        held = Held(lab, "postgres")
        try:
            ready = lab.url("die-service") + "/readyz"
            wait_for(lambda: get(ready).status == 503, say="the die-service notices")
            ask_all([("fair", None)])
            time.sleep(4 * SCRAPE)
            down = run([("fair", None)] * LOST)
        finally:
            held.close()
        yield healthy, down
    finally:
        lab.stop()


def near(expected: dict[str, float], share: float = 0.1, count: float = 1.0) -> dict[str, Any]:
    """Counts may differ by a scrape's share of the window, for which Prometheus extrapolates."""
    return {name: pytest.approx(value, rel=share, abs=count) for name, value in expected.items() if value}


def count_by(responses: list[RollResponse], key: Callable[[RollResponse], str]) -> dict[str, float]:
    return {name: float(count) for name, count in Counter(map(key, responses)).items()}


def rolls_by_die(responses: list[RollResponse]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for response in responses:
        counts[response.label] += 1 if response.status == 404 else len(response.faces)
    return {die: float(count) for die, count in counts.items() if count}


# --- counts ---


def test_rates_match_the_clients_requests(runs: tuple[Run, Run]) -> None:
    run, _ = runs
    responses = run.responses
    known = [response for response in responses if response.die != "nosuch"]
    batches = [response for response in responses if response.times]
    found_or_not = {"200": float(len(known)), "404": float(len(responses) - len(known))}
    expected = {
        "Request rate": count_by(responses, lambda r: f"{r.route} {r.status}"),
        "Frontend request rate": count_by(responses, lambda r: str(r.status)),
        "Button clicks by die": count_by(responses, lambda r: r.label),
        "Die-service request rate": found_or_not,
        "Roller to die-service: rate": found_or_not,
        "Roller to die-service: errors": {},
        "Query rate": {"get": float(len(responses))},
        "Query errors": {},
        "Rolls one by one and in batches": {
            "single rolls": float(len(responses) - len(batches)),
            "batches": float(len(batches)),
            "rolls in batches": float(sum(r.times or 0 for r in batches if r.die != "nosuch")),
        },
    }
    for title, counts in expected.items():
        assert run.counts(title) == near(counts), title


def test_totals_are_exact(runs: tuple[Run, Run]) -> None:
    run, _ = runs
    responses = run.everything
    assert run.values("Rolls by die") == rolls_by_die(responses)
    assert run.values("Dice requested") == count_by(responses, lambda r: r.label)
    for die in ("fair", "risky"):
        faces = Counter(face for r in responses if r.die == die for face in r.faces if face is not None)
        assert run.values(f"Faces of the {die} die") == {str(face): float(count) for face, count in faces.items()}
    buckets = {1: "1", 2: "2", 5: "3-5", 10: "6-10", 20: "11-20"}
    sizes = Counter(buckets[r.times] for r in responses if r.times and r.die != "nosuch")
    assert run.values("Batch sizes") == {name: float(count) for name, count in sizes.items()}


def test_failures_are_compared_with_the_design_of_each_die(runs: tuple[Run, Run]) -> None:
    run, _ = runs
    rolled = rolls_by_die(run.everything)
    failed = {die: float(sum(f is None for r in run.everything if r.die == die for f in r.faces)) for die in BUDGET}
    expected = {}
    for die, budget in BUDGET.items():
        spread = math.sqrt(rolled[die] * budget * (1 - budget) + 1)
        expected[die] = max((failed[die] - rolled[die] * budget) / spread, 0.0)
    shown = {name: value for name, (_, value) in run.series("Error rate by die").items()}
    assert shown == {die: pytest.approx(value, abs=1e-6) for die, value in expected.items()}
    assert run.colours("Error rate by die") == {"green"}


# --- shares ---


def test_designed_failures_count_as_served_and_database_errors_do_not(runs: tuple[Run, Run]) -> None:
    healthy, down = runs
    assert any(response.status == 500 for response in healthy.responses)
    assert healthy.values("Frontend success rate") == {"served": pytest.approx(1)}
    assert healthy.values("Query success rate") == {"success": pytest.approx(1)}
    assert {response.status for response in down.responses} == {503}
    eligible = [response for response in down.everything if response.status != 404]
    lost = [response for response in eligible if response.status == 503]
    served = 1 - len(lost) / len(eligible)
    assert down.values("Frontend success rate") == {"served": pytest.approx(served, rel=0.02)}
    assert down.colours("Frontend success rate") == {"red"}
    assert healthy.colours("Frontend success rate") == {"green"}


def test_panels_show_that_the_database_is_down(runs: tuple[Run, Run]) -> None:
    healthy, down = runs
    assert healthy.values("Connection pool") == {"open": 10, "free": 10}
    assert down.values("Connection pool") == {}
    assert healthy.values("Database up") == {"database": 1}
    assert {name: value for name, (_, value) in down.series("Database up").items()} == {"database": 0}
    for title, broken in (("Database up", "red"), ("Roller to die-service: errors", "red"), ("Query errors", "red")):
        assert broken in down.colours(title), title
        assert healthy.colours(title) == {"green"}, title
    assert healthy.values("Database connections").keys() == {"dice"}
    assert healthy.values("Database connections")["dice"] >= 10
    expected = {"503": float(LOST)}
    assert down.counts("Frontend request rate") == near(expected)
    assert down.counts("Die-service request rate") == near(expected)
    assert down.counts("Roller to die-service: errors") == near(expected)
    assert down.counts("Query errors") == near({"get": float(LOST)})


# --- durations ---


def percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94]}


@pytest.mark.parametrize("title", ["Latency of a roll", "End-to-end latency"])
def test_percentiles_match_the_client(runs: tuple[Run, Run], title: str) -> None:
    run, _ = runs
    single = title == "Latency of a roll"
    expected = percentiles([r.seconds for r in run.responses if not (single and r.times)])
    shown = run.values(title)
    assert shown.keys() == {"p50", "p95", "p99"}
    for name, value in expected.items():
        # The client waits for its own threads too; a bucket is up to two and a half times as wide as its lower bound.
        assert value / 3 - 0.01 < shown[name] < value * 2.5 + 0.01, (name, value)
    assert run.colours(title) == {"green"}


def test_the_speedup_matches_the_client(runs: tuple[Run, Run]) -> None:
    run, _ = runs
    singles = [r.seconds for r in run.responses if r.times is None]
    batches = [r for r in run.responses if r.times]
    rolls = sum(r.times or 0 for r in batches if r.die != "nosuch")
    expected = rolls * mean(singles) / sum(r.seconds for r in batches)
    assert run.values("Measured speed-up") == {"times faster": pytest.approx(expected, rel=0.5)}
    for title, seconds in (
        ("Duration of single rolls", mean(singles)),
        ("Duration of batches", mean(r.seconds for r in batches)),
    ):
        assert seconds / 3 < run.values(title)["mean"] < seconds * 1.1, title


@pytest.mark.parametrize("title", ["Query duration", "Die-service latency"])
def test_durations_below_a_millisecond_are_resolved(runs: tuple[Run, Run], title: str) -> None:
    """Compared with the histogram's own buckets: no bucket with a percentile may hold most observations."""
    run, _ = runs
    metric, labels = (
        ("database_query_duration_seconds", {"query_type": "get"})
        if title == "Query duration"
        else ("http_request_duration_seconds", {"handler": "/dice"})
    )
    counts = {
        float(sample.labels["le"]): sample.value
        for sample in run.lab.samples("die-service")
        if sample.name == f"{metric}_bucket" and labels.items() <= sample.labels.items()
    }
    bounds = sorted(counts)
    assert bounds[:3] == [0.0001, 0.00025, 0.0005]
    whole = counts[math.inf]
    p50 = run.values(title)["p50"]
    bucket = next(bound for bound in bounds if counts[bound] >= whole / 2)
    assert p50 <= bounds[min(bounds.index(bucket) + 1, len(bounds) - 2)]


# --- the summary row ---


def test_the_summary_shows_the_users_experience(runs: tuple[Run, Run]) -> None:
    healthy, down = runs
    last_minute = [r for r in healthy.everything if r.at > healthy.end - 60]
    shown = healthy.values("Service level")
    assert shown["requests"] * 60 == pytest.approx(len(last_minute), rel=0.15)
    assert shown["served"] == pytest.approx(1)
    assert 0 < shown["p95"] < 1.5
    assert healthy.colours("Service level") == {"green"}
    recent = [response for response in down.everything if response.at > down.end - 60 and response.status != 404]
    served = 1 - sum(response.status == 503 for response in recent) / len(recent)
    assert down.values("Service level")["served"] == pytest.approx(served, abs=0.1)
    reference, value = down.series("Service level")["served"]
    assert colour(STAGE_6["Service level"], reference, value) in ("orange", "red")
    assert healthy.values("Health")["error budget left"] == pytest.approx(1)
    assert {name for name, (_, value) in healthy.series("Health").items()} == {
        "fullest resource",
        "error budget left",
        "alerts",
    }
