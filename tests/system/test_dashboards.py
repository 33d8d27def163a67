"""The dashboards: the types of their panels, and every query of every panel, run where possible."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from lab.paths import COMPOSE
from lab.supervise import engines
from tests.support import labs, matrix, traffic
from tests.support.labs import Lab, get, wait_for
from tests.support.matrix import has
from tests.support.panel_types import TYPES, type_errors
from tests.support.queries import (
    RANGE,
    Parsed,
    Query,
    Selector,
    dashboard,
    fill,
    finds_line,
    finds_spans,
    holds,
    linked_queries,
    panels,
    parse,
    queries,
)

STAGES = {stage: f"stage-{stage}" for stage in matrix.STAGES}
NAMES = [*STAGES.values(), "slo", "pipeline", "executive"]
# Panels that show zero while all is well.
QUIET = {"Alerts firing", "Error rate by die", "Health"}


# --- the files ---


def test_every_dashboard_has_the_types_of_grafanas_schema(tmp_path: Path) -> None:
    assert type_errors({name: dashboard(name) for name in NAMES}, tmp_path) == []


def test_the_schema_is_that_of_the_grafana_in_the_containers() -> None:
    image = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["grafana"]["image"]
    required = json.loads((TYPES / "package.json").read_text())["dependencies"]
    assert image == f"grafana/grafana:{required['@grafana/schema']}"


def change(panel: str, *path: str | int, to: object) -> dict[str, Any]:
    """A dashboard that has one panel of stage 6 alone, with one value changed."""
    changed = copy.deepcopy(dashboard("stage-6"))
    (found,) = [each for each in changed["panels"] if each["title"] == panel]
    node = found
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return {**changed, "panels": [found]}


WRONG = {
    "type": change("Service level", "type", to="statistic"),
    "option": change("Service level", "options", "colour", to="value"),
    "option-value": change("Service level", "options", "colorMode", to="loud"),
    "nested-option": change("Request rate", "options", "legend", "position", to="bottom"),
    "nested-value": change("Request rate", "options", "tooltip", "mode", to="all"),
    "log-option": change("Error logs", "options", "order", to="Descending"),
    "default": change("Request rate", "fieldConfig", "defaults", "minimum", to=0),
    "default-value": change("Request rate", "fieldConfig", "defaults", "unit", to=["s"]),
    "custom": change("Request rate", "fieldConfig", "defaults", "custom", "lineWith", to=2),
    "custom-value": change("Request rate", "fieldConfig", "defaults", "custom", "drawStyle", to="dots"),
    "threshold": change("Request rate", "fieldConfig", "defaults", "thresholds", "mode", to="relative"),
    "override": change(
        "Service level", "fieldConfig", "overrides", 0, "properties", 0, to={"id": "units", "value": "s"}
    ),
    "override-value": change("Service level", "fieldConfig", "overrides", 0, "properties", 0, "value", to=1),
    "place": change("Service level", "gridPos", to={"x": 0, "y": 0, "width": 12, "height": 4}),
}


def test_grafanas_schema_refuses_wrong_panels(tmp_path: Path) -> None:
    wrong = {**WRONG, "around": {**dashboard("stage-6"), "panels": [], "style": "dark"}}
    found = type_errors(wrong, tmp_path)
    assert {message.partition(":")[0] for message in found} == wrong.keys(), found


# --- dashboards query only what their stage has ---


def read(every: list[Query]) -> list[tuple[Query, Parsed]]:
    """Each query and its parsed form; all of them must be valid."""
    parsed = parse((query.language, query.filled()) for query in every)
    for query, said in zip(every, parsed, strict=True):
        assert not said.errors, f"{query.panel}: {query.filled()} does not parse: {said.errors}"
    return list(zip(every, parsed, strict=True))


def test_the_grammars_refuse_invalid_queries() -> None:
    wrong = [("promql", "sum(rate(up[5m]"), ("logql", '{a="b"} | json |'), ("traceql", '{name="x" && }')]
    assert all(said.errors for said in parse(wrong))


@pytest.fixture(scope="module")
def used_lab(stage_lab: Callable[[int], Lab]) -> Callable[[int], Lab]:
    """A stage's lab after all its features were used."""
    used: set[int] = set()

    def of_stage(stage: int) -> Lab:
        lab = stage_lab(stage)
        if stage not in used:
            traffic.use_every_feature(lab)
            lab.settle()
            used.add(stage)
        return lab

    return of_stage


@pytest.mark.parametrize("stage", matrix.STAGES)
def test_dashboards_name_only_what_the_stage_has(used_lab: Callable[[int], Lab], stage: int) -> None:
    """Metrics, jobs and labels; log labels, fields and their values; span names, attributes and their values."""
    lab = used_lab(stage)
    samples = [
        {**sample.labels, "job": service, "__name__": sample.name}
        for service in lab.services
        for sample in lab.samples(service)
    ]
    lines, spans = lab.logs(), lab.spans()
    usage = [line for line in lines if "usage" in line]
    operations = [line for line in lines if "usage" not in line]
    for query, said in read([*queries(STAGES[stage]), *linked_queries(STAGES[stage])]):
        if query.language == "logql":
            assert finds_line(said, usage if query.source == "loki-usage" else operations), (query.panel, query.text)
        elif query.language == "traceql":
            if not finds_spans(said, spans):  # the last ones may not have arrived yet
                wait_for(partial(finds_span, said, lab), say=f"{query.panel}: {query.text}")
        else:
            for selector in alternatives(said.selectors):
                if selector.name == "ALERTS" or ":" in selector.name:  # generated by Prometheus; checked below
                    continue
                if ("job", "=", "postgres-exporter") in selector.matchers:
                    assert has("postgres", stage)  # checked below with the real exporter
                    continue
                found = [sample for sample in samples if matches(selector, sample)]
                assert found, (query.panel, str(selector))
            known = {label for sample in samples for label in sample} | (
                {"datname", "state"} if has("postgres", stage) else set()
            )
            assert said.labels <= known, query.panel


def test_the_executive_dashboard_counts_people_by_their_usage_events(used_lab: Callable[[int], Lab]) -> None:
    asked = [query for query in queries("executive") if query.language == "logql"]
    assert asked
    usage = [line for line in used_lab(6).logs("frontend") if "usage" in line]
    for query, said in read(asked):
        assert query.source == "loki-usage"
        assert finds_line(said, usage), query.text


def finds_span(said: Parsed, lab: Lab) -> bool:
    return finds_spans(said, lab.spans())


def matches(selector: Selector, sample: dict[str, str]) -> bool:
    return sample["__name__"] == selector.name and all(
        holds(matcher, sample.get(matcher[0])) for matcher in selector.matchers
    )


def alternatives(selectors: tuple[Selector, ...]) -> Iterator[Selector]:
    """The selectors; one with a list of words (``a|b``) once for each word, because each must exist."""
    for selector in selectors:
        lists = [m for m in selector.matchers if m[1] == "=~" and re.fullmatch(r"[\w-]+(\|[\w-]+)+", m[2])]
        yield selector
        for matcher in lists:
            for word in matcher[2].split("|"):
                others = tuple(m for m in selector.matchers if m != matcher)
                yield Selector(selector.name, (*others, (matcher[0], "=", word)))


# --- every query run by the real engines ---


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Stage 6 with its engines, scraped every second, after traffic that included a hanging die-service."""
    patience = 1.7  # seconds, longer than the objective
    lab = labs.start(
        tmp_path_factory.mktemp("dashboards") / "run",
        6,
        "--engines",
        DIE_SERVICE_TIMEOUT=str(patience),
        roll_delay=0.02,
    )
    try:
        labs.scrape_every_second(lab)
        # Scrape each counter at zero before it counts.
        wait_for(lambda: len(ask(lab, 'roll_requests_total{outcome="error"} == 0')) == 2, say="first scrapes")
        traffic.use_every_feature(lab, traffic.EVERY_SIZE)
        timeouts = 'die_service_requests_total{identifier="fair",status="timeout"} == 0'
        wait_for(lambda: ask(lab, timeouts), say="a scrape of the die's timeouts at zero")
        os.kill(lab.pid("die-service"), signal.SIGSTOP)
        try:
            assert traffic.roll_at_once(lab, ["/roll?die=fair", "/roll-async?die=fair&times=2"]) == {504}
        finally:
            os.kill(lab.pid("die-service"), signal.SIGCONT)
        traffic.use_every_feature(lab)
        # A die's series begin with its first roll, at the value of their first scrape: a rate needs a later increase.
        wait_for(lambda: ask(lab, 'dice_rolls_total{die_type="risky",result="error"}'), say="a risky die's failures")
        traffic.fail_a_risky_roll(lab)
        wait_for(partial(caught_rolling, lab), timeout=60, say="a scrape while rolls are in progress")
        yield lab
    finally:
        lab.stop()


def caught_rolling(lab: Lab) -> bool:
    traffic.roll_at_once(lab, ["/roll-async?die=fair&times=20"] * 4)
    return any(value > 0 for row in ask(lab, "max_over_time(async_rolls_in_progress[20s])") for value in row)


def engine(lab: Lab, name: str) -> dict[str, Any]:
    return next(entry for entry in lab.state["engines"] if entry["name"] == name)


def ask(lab: Lab, expression: str, instant: bool = True) -> list[list[float]]:
    """The values of each series in the result of a PromQL query; none of them is NaN."""
    now = time.time()
    arguments: dict[str, str | float] = {"query": expression}
    path = "query"
    if instant:
        arguments["time"] = now
    else:
        path = "query_range"
        arguments |= {"start": now - RANGE, "end": now, "step": 5}
    response = get(f"{engine(lab, 'prometheus')['url']}/api/v1/{path}?{urlencode(arguments)}").json
    assert response["status"] == "success", (expression, response)
    rows = response["data"]["result"]
    values = [[float(value) for _, value in row.get("values") or [row["value"]]] for row in rows]
    return [finite for row in values if (finite := [value for value in row if math.isfinite(value)])]


def ask_while_used(lab: Lab, expression: str, instant: bool = True) -> list[list[float]]:
    """As :func:`ask`, but rolls some dice after an empty result: without requests a ratio is NaN."""
    rows = ask(lab, expression, instant)
    if not rows:
        traffic.roll_at_once(lab, ["/roll?die=fair", "/roll-async?die=fair&times=2"])
    return rows


def shown(lab: Lab, query: Query, dice: str = ".*") -> bool:
    """Whether a panel's PromQL query has a result other than zeros."""
    rows = ask_while_used(lab, query.filled(dice), query.instant)
    return bool(rows) and (query.panel in QUIET or any(value != 0 for row in rows for value in row))


PROMQL = {
    (query.panel, query.text): query
    for name in ("stage-6", "slo")
    for query in queries(name)
    if query.language == "promql"
}
# The engine of a metric, by the prefix of its name.
EXPOSED_BY = {
    "otelcol_": "otel-collector",
    "tempo_": "tempo",
    "prometheus_remote_storage_": "tempo",
    "loki_write_": "alloy",
    "loki_source_": "alloy",
    "loki_": "loki",
    "alertmanager_": "alertmanager",
}
# Absent before the first loss, for hours, or while no alert fires.
NOT_YET = re.compile(
    r"otelcol_exporter_(?:send|enqueue)_failed_(?:spans|metric_points)_total|tempo_discarded_spans_total|loki_discarded_samples_total"
    r"|prometheus_remote_storage_samples_dropped_total|job:pipeline_lost:total|roll:window_complete:\w+|ALERTS"
)


def can_be_there(selector: Selector) -> bool:
    """Whether the lab of these tests has the engine that exposes a metric."""
    owner = next((engine for start, engine in EXPOSED_BY.items() if selector.name.startswith(start)), None)
    there = owner is None or any(engine.name == owner and engine.find() for engine in engines.ENGINES)
    return there and not NOT_YET.fullmatch(selector.name)


@pytest.mark.parametrize("query", PROMQL.values(), ids=lambda query: query.panel)
def test_promql_shows_data(lab: Lab, query: Query) -> None:
    wait_for(partial(shown, lab, query), timeout=30, say=query.filled())
    if "$die" in query.text:
        wait_for(partial(shown, lab, query, "(fair|risky)"), timeout=30, say=query.filled("(fair|risky)"))


def test_counts_are_exact(lab: Lab) -> None:
    """Bars count every roll and batch once, including those before a series' first scrape."""

    def counts(title: str) -> list[float]:
        return [sum(row[0] for row in ask(lab, query.filled())) for query in PROMQL.values() if query.panel == title]

    def rolled(**labels: str) -> float:
        return lab.value("dice-roller", "dice_rolls_total", **labels)

    def exact() -> bool:
        return (
            counts("Rolls by die") == [rolled()]
            and sum(counts("Faces of the fair die")) == rolled(die_type="fair", result="success")
            and sum(counts("Faces of the risky die")) == rolled(die_type="risky", result="success")
            and sum(counts("Batch sizes")) == lab.value("dice-roller", "async_roll_batch_size_count")
            and counts("Dice requested") == [lab.value("die-service", "die_specifications_requested_total")]
        )

    wait_for(exact, say="the counts of the services")


def test_exemplars_of_latency_panels_lead_to_traces(lab: Lab) -> None:
    expressions = {
        fill(target["expr"]): panel["title"]
        for panel in panels("stage-6")
        for target in panel.get("targets", [])
        if "histogram_quantile(0.95" in target.get("expr", "")
    }
    assert len(expressions) >= 6
    for expression, title in expressions.items():
        now = time.time()
        arguments = urlencode({"query": expression, "start": now - RANGE, "end": now})
        found = get(f"{engine(lab, 'prometheus')['url']}/api/v1/query_exemplars?{arguments}").json["data"]
        ids = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
        assert ids, title
        assert all(re.fullmatch("[0-9a-f]{32}", trace_id) for trace_id in ids)


def test_every_series_in_a_query_exists(lab: Lab) -> None:
    """Metric, job and label values together; a panel's ``or vector(0)`` cannot hide a missing series."""
    annotations = [
        Query("annotation", "prometheus", "promql", entry["target"]["expr"])
        for name in NAMES
        for entry in dashboard(name)["annotations"]["list"]
    ]
    # test_exporter.py tests it with an incident; here only whether all series that it queries exist.
    executive = [query for query in queries("executive") if query.language == "promql"]
    for query, said in read([*PROMQL.values(), *executive, *annotations]):
        labels: set[str] = set()
        for selector in alternatives(said.selectors):
            # An experiment runs in test_exporter.py only.
            if selector.name == "dicelab_experiment_running" or not can_be_there(selector):
                continue
            series = wait_for(partial(series_of, lab, str(selector)), timeout=30, say=f"{query.panel}: {selector}")
            labels |= {label for each in series for label in each}
        assert said.labels <= labels, query.panel


def series_of(lab: Lab, selector: str) -> list[dict[str, str]]:
    arguments = urlencode({"match[]": selector, "start": time.time() - RANGE})
    found: list[dict[str, str]] = get(f"{engine(lab, 'prometheus')['url']}/api/v1/series?{arguments}").json["data"]
    return found


def test_the_die_variable_lists_the_dice(lab: Lab) -> None:
    (variable,) = [v for v in dashboard("stage-6")["templating"]["list"] if v["name"] == "die"]
    call = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert call
    offered = {series[call[2]] for series in series_of(lab, call[1])}
    assert offered == {"fair", "risky", "extreme", "unknown"}


def test_rules_are_evaluated_and_record_data(lab: Lab) -> None:
    url = f"{engine(lab, 'prometheus')['url']}/api/v1/rules"

    def evaluated() -> list[dict[str, Any]] | None:
        rules = [rule for group in get(url).json["data"]["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] == "ok" for rule in rules) else None

    rules = wait_for(evaluated, say="all rules evaluated")
    assert len(rules) > 40
    assert not any(rule.get("lastError") for rule in rules)
    for rule in rules:
        if rule["type"] == "recording" and not NOT_YET.fullmatch(rule["name"]):
            wait_for(partial(ask_while_used, lab, rule["name"]), timeout=30, say=rule["name"])
    known = {entry.name for entry in engines.ENGINES} | {"frontend", "dice-roller", "die-service"}
    read_rules = read([Query(rule["name"], "prometheus", "promql", rule["query"]) for rule in rules])
    for query, said in read_rules:
        for selector in said.selectors:
            jobs = {name for label, _, value in selector.matchers if label == "job" for name in value.split("|")}
            assert jobs <= known, query.panel
            if can_be_there(selector) and not (jobs and jobs.isdisjoint(running(lab))):
                wait_for(partial(series_of, lab, str(selector)), timeout=30, say=f"{query.panel}: {selector}")


def running(lab: Lab) -> set[str]:
    return {*lab.services, *(entry["name"] for entry in lab.state["engines"])}


def test_pipeline_and_saturation_panels_show_data(lab: Lab) -> None:
    """Every panel of the services' saturation, and those of the available engines."""
    asked = [query for query in queries("pipeline") if query.language == "promql"]
    for query, said in read(asked):
        for selector in said.selectors:
            if can_be_there(selector):
                wait_for(partial(series_of, lab, str(selector)), timeout=30, say=f"{query.panel}: {selector}")
    for query in asked:
        if query.panel in ("CPU", "Memory", "Descriptors", "Event loop"):
            (values,) = wait_for(partial(by_job, lab, query), say=query.panel)
            assert values.keys() == set(lab.services)
            assert all(value >= 0 for value in values.values()), query.panel


def by_job(lab: Lab, query: Query) -> list[dict[str, float]] | None:
    response = get(f"{engine(lab, 'prometheus')['url']}/api/v1/query?{urlencode({'query': query.filled()})}").json
    values = {row["metric"]["job"]: float(row["value"][1]) for row in response["data"]["result"]}
    return [values] if len(values) == len(lab.services) else None


def test_designed_failures_are_separated_from_errors(lab: Lab) -> None:
    """Four requests failed by a missing table or a hanging die-service; every other failure was a die's own."""
    for service in ("frontend", "dice-roller"):
        assert lab.value(service, "roll_requests_total", outcome="error") == 4
        failed = lab.value(service, "http_requests_total", status="500")
        assert lab.value(service, "roll_requests_total", outcome="die_failed") == failed > 0
        real = [lab.value(service, "http_requests_total", status=status) for status in ("503", "504")]
        assert real == [2, 2]


@pytest.mark.skipif(not shutil.which("tempo"), reason="Tempo is not on PATH")
def test_traceql_finds_traces(lab: Lab) -> None:
    url = f"{engine(lab, 'tempo')['url']}/api/search"
    every = {(query.panel, query.text): query for query in [*queries("stage-6"), *linked_queries("stage-6")]}
    every |= {(query.panel, query.text): query for query in linked_queries("slo")}
    asked = {query.filled(): query.panel for query in every.values() if query.language == "traceql"}
    assert len(asked) > 10
    for text, panel in asked.items():

        def found(text: str = text) -> bool:
            now = int(time.time())
            response = get(f"{url}?{urlencode({'q': text, 'limit': 20, 'start': now - RANGE, 'end': now})}")
            assert response.status == 200, (text, response.body)
            return bool(response.json["traces"])

        wait_for(found, timeout=30, say=f"{panel}: {text}")


@pytest.mark.skipif(not shutil.which("tempo"), reason="Tempo is not on PATH")
def test_the_service_map_has_its_edges(lab: Lab) -> None:
    """The queries that Grafana's Tempo data source sends to Prometheus for a service map."""
    (panel,) = [panel for panel in panels("stage-6") if panel["type"] == "nodeGraph"]
    assert panel["targets"][0]["queryType"] == "serviceMap"
    chosen = panel["targets"][0]["serviceMapQuery"]
    for metric in ("request_total", "request_server_seconds_sum", "request_failed_total"):
        expression = f"sum by (client, server) (rate(traces_service_graph_{metric}{chosen}[{RANGE}s]))"
        wait_for(partial(edges, lab, expression), timeout=60, say=expression)


def edges(lab: Lab, expression: str) -> bool:
    response = get(f"{engine(lab, 'prometheus')['url']}/api/v1/query?{urlencode({'query': expression})}").json
    found = {(row["metric"]["client"], row["metric"]["server"]) for row in response["data"]["result"]}
    return {("frontend", "dice-roller"), ("dice-roller", "die-service")} <= found


@pytest.mark.skipif(
    not {"loki", "alloy"} <= {entry.name for entry in engines.ENGINES if entry.find()},
    reason="Loki or Alloy is not on PATH",
)
def test_logql_finds_lines(lab: Lab) -> None:
    tenants = {"loki": "operations", "loki-usage": "usage"}
    every = [*queries("stage-6"), *queries("executive")]
    every += [*linked_queries("stage-6"), *linked_queries("slo"), *linked_queries("executive")]
    asked = {(query.filled(), query.source): query for query in every if query.language == "logql"}
    assert len(asked) > 15
    for (text, source), query in asked.items():

        def found(text: str = text, source: str = source, query: Query = query) -> bool:
            now = time.time()
            arguments: dict[str, Any] = {"query": text, "limit": 100}
            path = "query" if query.instant else "query_range"
            arguments |= {"time": int(now)} if query.instant else {"start": int(now) - RANGE, "end": int(now) + 1}
            url = f"{engine(lab, 'loki')['url']}/loki/api/v1/{path}?{urlencode(arguments)}"
            response = get(url, headers={"X-Scope-OrgID": tenants[source]})
            assert response.status == 200, (text, response.body)
            return bool(response.json["data"]["result"])

        wait_for(found, timeout=30, say=f"{query.panel}: {text}")
