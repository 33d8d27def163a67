"""Counters, gauges and histograms of both packages: their values, their exposition, and that both agree."""

from __future__ import annotations

import math
import threading
from importlib import import_module
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.signals import Sample, parse_samples, total

PACKAGES = ("standard", "fast")
AMOUNTS = st.lists(st.floats(0, 20, allow_nan=False), max_size=30)
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


def load(package: str) -> ModuleType:
    return import_module(f"otel.{package}.metrics")


@pytest.fixture(params=PACKAGES)
def metrics(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.param)


def samples(registry: CollectorRegistry) -> list[Sample]:
    return parse_samples(generate_openmetrics(registry).decode())


def test_a_counter_counts_by_label(metrics: ModuleType) -> None:
    registry = CollectorRegistry()
    rolls = metrics.Counter("dice_rolls_total", "Rolls.", ["die_type", "result"], registry=registry)
    rolls.labels("fair", "success").inc()
    rolls.labels("fair", "success").inc(2)
    rolls.labels("risky", "error")
    found = samples(registry)
    assert {tuple(sample.labels.values()): sample.value for sample in found if sample.name == "dice_rolls_total"} == {
        ("fair", "success"): 3,
        ("risky", "error"): 0,  # a label set that is known beforehand starts at zero
    }


def test_the_number_of_label_values_is_checked(metrics: ModuleType) -> None:
    counter = metrics.Counter("x_total", "X.", ["one", "two"])
    with pytest.raises(ValueError, match="label"):
        counter.labels("only one").inc()


def test_a_gauge_can_be_set_or_computed(metrics: ModuleType) -> None:
    registry = CollectorRegistry()
    gauge = metrics.Gauge("pool_size", "Connections.", registry=registry)
    gauge.set(10)
    gauge.inc()
    gauge.dec(4)
    assert total(samples(registry), "pool_size") == 7
    values = iter([3.0, 5.0])
    gauge.set_function(lambda: next(values))
    assert [total(samples(registry), "pool_size") for _ in range(2)] == [3, 5]


def test_bucket_bounds_are_inclusive(metrics: ModuleType) -> None:
    registry = CollectorRegistry()
    seconds = metrics.Histogram("seconds", "Seconds.", registry=registry, buckets=(0.1, 1))
    for amount in (0.0, 0.1, 0.100001, 1, 7):
        seconds.observe(amount)
    found = samples(registry)
    buckets = {sample.labels["le"]: sample.value for sample in found if sample.name == "seconds_bucket"}
    assert buckets == {"0.1": 2, "1.0": 4, "+Inf": 5}
    assert total(found, "seconds_count") == 5
    assert total(found, "seconds_sum") == pytest.approx(8.200001)


def test_exposition_has_type_and_help_of_each_family(metrics: ModuleType) -> None:
    registry = CollectorRegistry()
    metrics.Counter("rolls_total", "Rolls there were.", registry=registry)
    metrics.Gauge("size", "Connections.", registry=registry)
    metrics.Histogram("seconds", "Seconds of a roll.", registry=registry)
    page = generate_openmetrics(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {name: (family.type, family.documentation) for name, family in families.items()} == {
        "rolls": ("counter", "Rolls there were."),
        "size": ("gauge", "Connections."),
        "seconds": ("histogram", "Seconds of a roll."),
    }
    assert "# TYPE rolls_total counter" in generate_latest(registry).decode()  # in the older format, too


def test_exemplar_is_the_trace_of_the_last_observation_in_a_bucket(metrics: ModuleType) -> None:
    registry = CollectorRegistry()
    seconds = metrics.Histogram("seconds", "Seconds.", registry=registry, buckets=(1,))
    seconds.observe(0.1, metrics.exemplar())  # outside any span
    assert not any(sample.exemplar for sample in samples(registry))
    for trace_id, amount in ((0xA, 0.2), (0xB, 0.3), (0xC, 5)):
        seconds.observe(amount, exemplar_of(metrics, trace_id))
    seconds.observe(0.4, exemplar_of(metrics, 0))  # without a trace: the exemplar stays
    found = {sample.labels["le"]: sample.exemplar for sample in samples(registry) if sample.name == "seconds_bucket"}
    assert {le: (one.labels["trace_id"], one.value) for le, one in found.items() if one} == {
        "1.0": (f"{0xB:032x}", 0.3),
        "+Inf": (f"{0xC:032x}", 5),
    }


def exemplar_of(metrics: ModuleType, trace_id: int) -> object:
    """The return value of the package's ``exemplar()`` in a trace with this id, 0 for none."""
    if metrics is load("fast"):
        return f"{trace_id:032x}" if trace_id else ""
    return {"trace_id": trace.format_trace_id(trace_id)} if trace_id else None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_registry_has_process_and_dropped_telemetry_metrics(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real counts are those of the process, in which other tests drop lines.
    monkeypatch.setattr(f"otel.{package}.traces.dropped", lambda: 3)
    monkeypatch.setattr(f"otel.{package}.logs.dropped", lambda: 4)
    found = samples(load(package).new_registry())
    assert total(found, "process_resident_memory_bytes") > 2**20
    dropped = {sample.labels["signal"]: sample.value for sample in found if sample.name == "telemetry_dropped_total"}
    assert dropped == {"traces": 3, "logs": 4}
    assert not [sample.name for sample in found if sample.name.endswith("_created")]


def test_scrapes_are_consistent_under_concurrent_updates(metrics: ModuleType) -> None:
    """One thread scrapes while another creates series and counts: nothing fails and counters never decrease."""
    registry = CollectorRegistry()
    counter = metrics.Counter("x_total", "X.", ["number"], registry=registry)
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            counter.labels(str(number % 500)).inc()
            number += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        seen = [total(samples(registry), "x_total") for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert seen[-1] > 0


@settings(deadline=None)
@given(counts=st.dictionaries(LABELS, AMOUNTS, max_size=4), observed=AMOUNTS)
def test_both_packages_expose_the_same_metrics(counts: dict[str, list[float]], observed: list[float]) -> None:
    load("standard").new_registry()  # as a service does: no samples named *_created from then on
    pages = []
    for package in PACKAGES:
        metrics, registry = load(package), CollectorRegistry()
        counter = metrics.Counter("rolls_total", "Rolls.", ["die"], registry=registry)
        for die, amounts in counts.items():
            series = counter.labels(die)
            for amount in amounts:
                series.inc(amount)
        histogram = metrics.Histogram("seconds", "Seconds.", registry=registry, buckets=(0.5, 1, 10, math.inf))
        for amount in observed:
            histogram.observe(amount)
        pages.append(sorted((one.name, sorted(one.labels.items()), one.value) for one in samples(registry)))
    assert pages[0] == pages[1]
