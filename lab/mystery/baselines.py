"""Baselines: answers that need no understanding. A situation is suitable for the game only if they score low.

``constants`` gives the same answer to every case: the one that scores best without looking at the telemetry.
``three_sigma`` is a simple detector: it looks for metrics that leave their usual range by more than three standard
deviations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from statistics import mean, pstdev

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.mystery.answer import Answer
from lab.mystery.case import Case, Timed
from lab.mystery.files import Recorded
from lab.mystery.score import Score, score
from lab.mystery.situations import MECHANISMS, NOTHING
from lab.signals import SPAN_KINDS, Span
from lab.supervise.stages import POSTGRES

SIGMAS = 3.0
LEARNED_SECONDS = 30.0  # the usual range of a series is learned from so many seconds
MIN_POINTS = 5  # of a series in that time
CEILING = 35.0  # the mean score that a baseline must stay below
ERRORS = "SELECT count(*) FROM spans WHERE status = 'error'"
MEDIAN_DURATION = "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE kind = 'server'"

Series = tuple[str, str, str]


def first_failure(case: Case) -> str:
    """The first failed trace of the second half of the game, or the slowest one if none failed."""
    middle = (case.began + case.ended) / 2
    roots = [span for span in case.spans if not span.parent_id and span.start / 1e9 >= middle]
    failed = sorted((span for span in roots if span.failed), key=lambda span: span.start)
    if failed:
        return failed[0].trace_id
    return max(roots, key=lambda span: span.end - span.start).trace_id if roots else ""


def constants(recorded: Sequence[Recorded]) -> tuple[str, list[Score]]:
    """The constant answer with the highest mean, and its score for each case."""
    components = sorted({name for one in recorded for name in one.truth.components})
    since = _best_onset(recorded)
    evidence = {query: [_evidence(one, query) for one in recorded] for query in (ERRORS, MEDIAN_DURATION)}
    best: tuple[float, str, list[Score]] = (-1.0, "", [])
    for component, mechanism, query in product(components, MECHANISMS, evidence):
        nothing = component == NOTHING
        found = []
        for one, (trace, queried) in zip(recorded, evidence[query], strict=True):
            began = None if nothing else one.case.began + since
            plain = score(one.case, one.truth, Answer((component,), (mechanism,), began))
            found.append(replace(plain, trace=trace, query=queried) if plain.component and not nothing else plain)
        average = mean(one.total for one in found)
        if average > best[0]:
            best = average, f"{component}, {mechanism}, +{since:.0f} s, {query}", found
    return best[1], best[2]


def _evidence(one: Recorded, query: str) -> tuple[float, float]:
    """The points for a trace and a query that were chosen without understanding, if the component is right."""
    found = score(one.case, one.truth, Answer(one.truth.components, trace=first_failure(one.case), query=query))
    return found.trace, found.query


def _best_onset(recorded: Sequence[Recorded]) -> float:
    """The onset, in seconds after the beginning, that is right for the most cases."""
    onsets = [one.truth.onset - one.case.began for one in recorded if one.truth.onset is not None]
    return max(onsets, key=lambda one: sum(abs(one - other) <= 5.0 for other in onsets), default=0.0)


def three_sigma(case: Case, components: Iterable[str]) -> Answer:
    """The answer of a detector that knows only the metrics."""
    series: dict[Series, list[tuple[float, float]]] = {}
    for timed in case.samples:
        series.setdefault(_series(timed), []).append((timed.at, timed.sample.value))
    kinds = {_series(timed): _counts(timed) for timed in case.samples}
    alarms: list[tuple[float, float, Series]] = []  # the time, the deviation, the series
    for name, points in series.items():
        alarm = _first_alarm(_rates(points) if kinds[name] else points, case.began + LEARNED_SECONDS)
        if alarm is not None:
            alarms.append((*alarm, name))
    known = list(components)
    if not alarms:
        return Answer((NOTHING,), (NOTHING,))
    votes = Counter(_component(name) for *_, name in alarms)
    component = next((name for name, _ in votes.most_common() if name in known), ROLLER)
    loudest = max(alarms, key=lambda alarm: alarm[1])
    since = min(at for at, _, name in alarms if _component(name) == component)
    return Answer((component,), (_mechanism(loudest[2]),), since, trace=_slowest(case, since), query=ERRORS)


def _series(timed: Timed) -> Series:
    labels = ",".join(f"{name}={value}" for name, value in sorted(timed.sample.labels.items()))
    return timed.service, timed.sample.name, labels


def _counts(timed: Timed) -> bool:
    return timed.kind in ("counter", "histogram", "summary")


def _rates(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [
        (at, max(0.0, value - before) / (at - earlier))
        for (earlier, before), (at, value) in pairwise(points)
        if at > earlier
    ]


def _first_alarm(points: Sequence[tuple[float, float]], learned: float) -> tuple[float, float] | None:
    """When a series first leaves its usual range twice in a row, and by how many standard deviations."""
    usual = [value for at, value in points if at < learned]
    if len(usual) < MIN_POINTS:
        return None
    centre, deviation = mean(usual), pstdev(usual)
    floor = max(deviation, 1e-9, abs(centre) * 0.01)
    late = [(at, abs(value - centre) / floor) for at, value in points if at >= learned]
    for (at, first), (_, second) in pairwise(late):
        if min(first, second) > SIGMAS:
            return at, min(first, second)
    return None


def _component(series: Series) -> str:
    service, metric, _ = series
    if metric.startswith("database_"):
        return POSTGRES
    if metric.startswith("die_service_"):
        return DIE_SERVICE
    return service


def _mechanism(series: Series) -> str:
    """The mechanism that a metric's name suggests."""
    metric = series[1]
    for word, mechanism in (
        ("lag", "blocked-loop"),
        ("pool", "pool-too-small"),
        ("connection", "connection-leak"),
        ("duration", "slow-network"),
        ("requests", "down"),
        ("restart", "crashing"),
        ("value", "wrong-weights"),
    ):
        if word in metric:
            return mechanism
    return "down"


def _slowest(case: Case, since: float) -> str:
    def late(span: Span) -> bool:
        return span.service == FRONTEND and SPAN_KINDS[span.kind] == "server" and span.start / 1e9 >= since

    spans = [span for span in case.spans if late(span)]
    return max(spans, key=lambda span: (span.failed, span.end - span.start)).trace_id if spans else ""
