"""The conclusions of an experiment from its observations; and only one experiment runs at a time."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from lab import LabError
from lab.chaos.expectations import Expectation, alerts, responses, telemetry
from lab.chaos.faults import Faults, FaultServer
from lab.chaos.observations import Observations
from lab.client import Lab, Missing, NotRunning
from lab.load.generator import Response
from lab.signals import Span
from lab.supervise.rundir import RunDir

SILENT = {"DatabaseDown": "inactive", "HighErrorRatio": "inactive"}


def observed(tmp_path: Path, *states: tuple[float, dict[str, str]], fault: float = 45.0) -> Observations:
    """An experiment whose fault began at 100; ``states`` are the alerts at seconds after that."""
    lab = Lab(RunDir(tmp_path), "", {"frontend": ""}, {"prometheus": ""})
    found = Observations(lab)
    found.note_alerts(SILENT, 99.0)
    found.injected, found.restored, found.watched = 100.0, 100.0 + fault, 120.0
    for seconds, active in states:
        found.note_alerts(SILENT | active, 100.0 + seconds)
    return found


async def met(expectation: Expectation, observations: Observations) -> str:
    try:
        return await expectation.check(observations)
    except Missing as missing:
        return f"not met: {missing}"


def first(*names: str, within: float = 30.0, during: bool = True) -> Expectation:
    return alerts.first(*names, within=within, during=during)


DOWN = {"DatabaseDown": "firing"}


async def test_the_first_alert_is_the_one_that_fired_first_and_in_time(tmp_path: Path) -> None:
    seen = observed(tmp_path, (10, {"DatabaseDown": "pending"}), (20, DOWN), (26, DOWN | {"HighErrorRatio": "firing"}))
    assert await met(first("DatabaseDown"), seen) == "DatabaseDown after 20 s, HighErrorRatio after 26 s"
    assert seen.detections["alert DatabaseDown pending"] == pytest.approx(10)
    assert (await met(first("HighErrorRatio"), seen)).startswith("not met: DatabaseDown after 20 s")
    assert (await met(first("DatabaseDown", within=15), seen)).startswith("not met")
    assert (await met(first(), seen)).startswith("not met: DatabaseDown")


async def test_an_alert_that_a_short_fault_cannot_raise_is_not_checked(tmp_path: Path) -> None:
    short = observed(tmp_path, (3, {}), fault=5.0)
    with pytest.raises(NotRunning, match="takes a fault of 30 s"):
        await first("DatabaseDown").check(short)
    assert await met(first("DatabaseDown", during=False), short) == "not met: none fired"
    assert await met(first(), short) == "none fired"
    with pytest.raises(NotRunning, match="no alert has fired"):
        await alerts.fall_silent(120).check(short)


async def test_an_alert_that_fired_before_the_fault_is_not_a_sign_of_it(tmp_path: Path) -> None:
    seen = observed(tmp_path)
    seen.alerts_before = SILENT | {"DatabaseDown": "firing"}
    seen.note_alerts(SILENT | DOWN, 120.0)
    assert seen.firing == {}
    with pytest.raises(NotRunning, match="not inactive before"):
        await first("DatabaseDown").check(seen)


async def test_silence_is_measured_from_the_end_of_the_fault(tmp_path: Path) -> None:
    silent = alerts.fall_silent(120)
    seen = observed(tmp_path, (20, DOWN), (60, {}))
    assert await met(silent, seen) == "DatabaseDown after 15 s"
    again = observed(tmp_path, (20, DOWN), (30, {}), (40, DOWN), (70, {}))  # the last time counts
    assert await met(silent, again) == "DatabaseDown after 25 s"
    assert (await met(silent, observed(tmp_path, (20, DOWN), (200, {})))).startswith(
        "not met: DatabaseDown after 155 s"
    )
    still = observed(tmp_path, (20, DOWN))
    assert await met(silent, still) == "not met: DatabaseDown still fires"
    still.watched = 0.0
    with pytest.raises(NotRunning, match="takes up to 120 s"):
        await silent.check(still)


async def test_without_prometheus_no_alert_is_checked(tmp_path: Path) -> None:
    seen = observed(tmp_path)
    seen.lab.engines = {}
    for expectation in (first("DatabaseDown"), first(), alerts.fall_silent(120)):
        with pytest.raises(NotRunning, match="prometheus is not running"):
            await expectation.check(seen)


class LabWithTraces(Lab):
    """A lab that has the spans of these services for each trace."""

    services_of: ClassVar[dict[str, set[str]]] = {}

    async def fetch_trace(self, trace_id: str) -> list[Span]:
        spans = self.services_of.get(trace_id, set())
        if not spans:
            raise Missing(f"no trace {trace_id}")
        return [Span(service, "", trace_id, "", "", 1, 0, 0, 0, {}, []) for service in spans]


async def test_only_traces_of_the_last_seconds_may_lack_spans(tmp_path: Path) -> None:
    lab = LabWithTraces(RunDir(tmp_path), "", {"frontend": ""})
    seen = Observations(lab, injected=100.0, restored=105.0)
    seen.responses = [Response("/roll", "200", {}, f"{at:g}", 0.1, at) for at in (95.0, 97.0, 98.0, 99.5, 101.0)]
    whole = {"traffic", "frontend"}
    LabWithTraces.services_of = {response.trace_id: whole for response in seen.responses}
    assert await met(telemetry.traces_lost(4), seen) == "none of 5"
    LabWithTraces.services_of = {**LabWithTraces.services_of, "98": {"traffic"}, "99.5": set()}
    assert await met(telemetry.traces_lost(4), seen) == "2 of 5, answered -1.9 s to -0.4 s relative to its start"
    assert (await met(telemetry.traces_lost(1), seen)).startswith("not met: 2 of ")
    LabWithTraces.services_of = {**LabWithTraces.services_of, "101": set()}
    assert (await met(telemetry.traces_lost(4), seen)).startswith("not met: 3 of 5")
    # It was in progress, and some spans had been sent.
    seen.responses[-1] = Response("/roll", "200", {}, "101", 0.9, 99.8)
    assert await met(telemetry.traces_lost(4), seen) == "3 of 5, answered -1.9 s to +0.7 s relative to its start"
    assert (await met(telemetry.traces_lost(), seen)).startswith("not met: ")
    lab.state = {"sampling": "tail"}  # sampling may have dropped a missing trace
    with pytest.raises(NotRunning, match="a sample of such traces"):
        await telemetry.traces_lost(4).check(seen)


async def test_a_second_experiment_is_refused_with_the_reason_before_it_asks(tmp_path: Path) -> None:
    server = FaultServer({}, {}, [], tmp_path)
    await server.open()
    try:
        async with Faults(str(server.path)) as first:
            with pytest.raises(LabError, match="another experiment runs in this lab"):
                await Faults(str(server.path)).__aenter__()
            with pytest.raises(LabError, match="runs no service of its own"):
                await first.ask(restart={"service": {}})
        async with Faults(str(server.path)) as next_one:
            await next_one.ask(end=True)
    finally:
        await server.close()


def several(status: str, *durations: float, at: float) -> list[Response]:
    """One response for each duration, in seconds; requests start a hundredth of a second apart."""
    headers = {"Retry-After": "1"} if status == "503" else {}
    return [Response("/roll", status, {}, f"{at:g}", s, at + i / 100, headers) for i, s in enumerate(durations)]


def with_responses(tmp_path: Path, *given: list[Response]) -> Observations:
    """A fault from 100 to 103."""
    seen = observed(tmp_path, fault=3.0)
    seen.responses = [response for part in given for response in part]
    return seen


async def test_refusals_are_prompt_if_nearly_all_come_within_a_second(tmp_path: Path) -> None:
    prompt = responses.refused_promptly()
    assert prompt.timed
    assert await met(prompt, with_responses(tmp_path, several("503", *[0.01] * 50, at=101))) == "p99 of 50: 10 ms"
    late = with_responses(tmp_path, several("503", *[0.01] * 50, 1.3, 1.3, at=101))
    assert await met(prompt, late) == "not met: p99 of 52 was 1300 ms"
    under_way = with_responses(tmp_path, several("503", 1.5, at=99))  # it began half a second before the fault
    assert await met(prompt, under_way) == "p99 of 1: 500 ms"
    assert await met(prompt, with_responses(tmp_path, several("200", 0.01, at=101))) == "not met: no response was 503"


async def test_load_is_shed_if_what_follows_the_first_refusal_comes_at_once(tmp_path: Path) -> None:
    sheds = responses.sheds(0.9)
    first_one = several("503", 1.0, at=100.5)
    at_once = with_responses(tmp_path, first_one, several("503", *[0.02] * 19, 0.8, at=102))
    assert await met(sheds, at_once) == "the first after 1.5 s; from then on 19 of 20 within 500 ms"
    waiting = with_responses(tmp_path, first_one, several("503", *[0.02] * 10, *[0.8] * 10, at=102))
    assert (await met(sheds, waiting)).startswith("not met: the first after 1.5 s; from then on 10 of 20")


async def test_no_request_hangs_if_the_longest_is_short(tmp_path: Path) -> None:
    seen = with_responses(tmp_path, several("200", 0.1, 2.5, at=101))
    assert await met(responses.none_hangs(5), seen) == "the longest took 2.50 s"
    assert (await met(responses.none_hangs(2), seen)) == "not met: the longest took 2.50 s, trace 101"


async def test_rolls_are_back_with_the_first_success_after_the_fault(tmp_path: Path) -> None:
    seen = with_responses(tmp_path, several("503", 0.01, at=103.1), several("200", 0.5, at=104))
    assert await met(responses.back_within(2), seen) == "after 1.50 s"
    assert await met(responses.back_within(1), seen) == "not met: after 1.50 s"
    assert await met(responses.back_within(1), with_responses(tmp_path)) == "not met: there was no 200"


async def test_responses_are_unaffected_if_median_and_95th_percentile_hardly_change(tmp_path: Path) -> None:
    before = several("200", *[0.1] * 20, at=98)
    same = with_responses(tmp_path, before, several("200", *[0.11] * 20, at=101))
    assert await met(responses.unaffected(), same) == "p50 100 → 110 ms, p95 100 → 110 ms"
    slower = with_responses(tmp_path, before, several("200", *[0.1] * 15, *[0.4] * 5, at=101))
    assert await met(responses.unaffected(), slower) == "not met: p50 100 → 100 ms, p95 100 → 400 ms"
