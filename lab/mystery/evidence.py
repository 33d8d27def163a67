"""Evidence: where a trace shows an anomaly, and whether a query tells the fault from the time before it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from lab import InputError
from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.mystery import promql
from lab.mystery.answer import BadAnswer
from lab.mystery.case import Case, write_window
from lab.mystery.samples import window
from lab.mystery.truth import Truth
from lab.signals import SPAN_KINDS, Span, covered, parse_time
from lab.supervise.stages import POSTGRES
from lab.tables import Tables, mentions_samples

# The server that each service calls.
CALLEES = {FRONTEND: ROLLER, ROLLER: DIE_SERVICE, DIE_SERVICE: POSTGRES}
TELEMETRY_ENGINES = frozenset({"otel-collector", "tempo"})
# A span is too long if its own time exceeds the longest before the fault by this factor and this many seconds.
LONGER, LONGER_SECONDS = 1.2, 0.03
RARE_SHARE = 0.005  # a failure in at most this share of the traces before the fault is not ordinary
BEFORE = 0.5  # seconds; requests that begin within this time before the fault may be affected by it
WINDOWS = 3  # the number of windows before the fault, and during it
MAX_WINDOW = 12.0  # seconds
LATE = 4.0  # seconds; the end of a game is left out, because requests of that time may not have ended
EPOCH = 946_684_800.0  # 2000-01-01, to which each window is shifted
MIN_GAP = 0.5  # between the values before and during the fault, as a share of the range of those before it

Key = tuple[str, str, int]


@dataclass
class Ordinary:
    """The normal behaviour of the spans: what was seen before the fault.

    Attributes:
        longest: the longest own time of each kind of span, in seconds.
        failures: the number of failures of each kind.
        traces: the number of traces.
        calls: the most client spans below one span, by its kind.
        calling: the kinds of span that had a client span below them.
    """

    longest: dict[Key, float] = field(default_factory=dict)
    failures: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    traces: int = 0
    calls: dict[Key, int] = field(default_factory=dict)
    calling: set[Key] = field(default_factory=set)

    @classmethod
    def of(cls, traces: Iterable[list[Span]]) -> Ordinary:
        found = cls()
        for spans in traces:
            found.traces += 1
            for span, children in _with_children(spans):
                key = _key(span)
                found.longest[key] = max(found.longest.get(key, 0.0), own_time(span, children))
                clients = sum(_is_client(child) for child in children)
                found.calls[key] = max(found.calls.get(key, 0), clients)
                if clients:
                    found.calling.add(key)
                if span.failed:
                    found.failures[_failure(span)] += 1
        return found

    def fails_like(self, span: Span) -> bool:
        """Whether spans failed in this way before the fault, and more than rarely."""
        return self.failures[_failure(span)] > RARE_SHARE * self.traces


def anomaly(case: Case, truth: Truth, trace_id: str) -> set[str]:
    """The components at which a trace during the fault shows its deepest anomaly; empty where it shows none."""
    onset = truth.onset
    if onset is None:
        return set()
    spans = case.traces.get(trace_id, [])
    mentioned = [
        line
        for line in case.lines
        if line.get("trace_id") == trace_id and parse_time(line.get("timestamp")) >= onset - BEFORE
    ]
    if spans and min(span.start for span in spans) / 1e9 < onset - BEFORE:
        return set()
    if not spans:
        # Log lines without a span: the trace was not recorded, or not stored.
        return {FRONTEND, *TELEMETRY_ENGINES} if mentioned else set()
    if truth.loaded is not None and any(_shows(span, *truth.loaded) for span in spans):
        return {ROLLER}
    # A trace that was in progress when the fault began is neither normal nor evidence.
    before = (own for own in case.traces.values() if max(span.end for span in own) / 1e9 < onset)
    return _broken(spans) or _unusual(spans, Ordinary.of(before))


def _shows(span: Span, die: str, face: int) -> bool:
    return span.attributes.get("die.type") == die and span.attributes.get("die.result") == face


def _broken(spans: Sequence[Span]) -> set[str]:
    """Where spans are missing: below a call that was answered, or above the first span of a service."""
    found: set[str] = set()
    there = {span.service for span in spans}
    for span, children in _with_children(spans):
        callee = CALLEES.get(span.service)
        is_http = _is_client(span) and "http.request.method" in span.attributes
        if is_http and callee and not children and not span.failed:
            # Spans of the callee, or of a service below it, show that the context has arrived: only spans are missing.
            arrived = bool({callee, CALLEES.get(callee)} & there)
            found |= {callee} if arrived else {callee, f"{span.service}->{callee}"}
    ids = {span.span_id for span in spans}
    for span in spans:
        caller = next((name for name, callee in CALLEES.items() if callee == span.service), None)
        if caller and SPAN_KINDS[span.kind] == "server" and span.parent_id not in ids:
            # Its caller's spans are missing, or, without a parent, it began a trace of its own.
            found |= {f"{caller}->{span.service}"} if not span.parent_id else {caller}
    return found


def _unusual(spans: Sequence[Span], ordinary: Ordinary) -> set[str]:
    family = list(_with_children(spans))
    for span, children in family:
        clients = sum(_is_client(child) for child in children)
        if clients > max(1, ordinary.calls.get(_key(span), 0)):
            return {span.service}  # it repeats its requests
    failed = [
        (span, children)
        for span, children in family
        if span.failed and not ordinary.fails_like(span) and not any(child.failed for child in children)
    ]
    if failed:
        return set().union(*(_where_failed(span, children, ordinary) for span, children in failed))
    excess = {
        span.span_id: own_time(span, children) - (ordinary.longest.get(_key(span), 0.0) * LONGER + LONGER_SECONDS)
        for span, children in family
    }
    worst = max(excess, key=lambda span_id: excess[span_id])
    return _where(next(span for span in spans if span.span_id == worst)) if excess[worst] > 0 else set()


def _where_failed(span: Span, children: Sequence[Span], ordinary: Ordinary) -> set[str]:
    found = _where(span)
    callee = CALLEES.get(span.service)
    if callee and not _is_client(span) and _key(span) in ordinary.calling and not children:
        found |= {callee, f"{span.service}->{callee}"}  # it failed before it could send its request
    return found


def _where(span: Span) -> set[str]:
    """The components that may be the cause of a span's failure, or of its own time."""
    callee = CALLEES.get(span.service)
    return {callee, f"{span.service}->{callee}"} if _is_client(span) and callee else {span.service}


def _with_children(spans: Sequence[Span]) -> Iterable[tuple[Span, list[Span]]]:
    below: dict[str, list[Span]] = {}
    for span in spans:
        below.setdefault(span.parent_id, []).append(span)
    return [(span, below.get(span.span_id, [])) for span in spans]


def own_time(span: Span, children: Iterable[Span]) -> float:
    """The seconds of a span that none of its children covers."""
    inside = ((max(child.start, span.start), min(child.end, span.end)) for child in children)
    return (span.end - span.start - covered(part for part in inside if part[0] < part[1])) / 1e9


def _key(span: Span) -> Key:
    name = "roll" if span.name.startswith("roll ") else span.name
    return span.service, name, span.kind


def _failure(span: Span) -> tuple[Any, ...]:
    attributes = span.attributes
    return *_key(span), attributes.get("http.response.status_code"), attributes.get("error.type")


def _is_client(span: Span) -> bool:
    return SPAN_KINDS[span.kind] == "client"


# --- a query ---


def check_query(query: str) -> None:
    """Check that a query is valid and returns one number.

    Raises:
        BadAnswer: with the reason of DuckDB or Prometheus, in one line.
    """
    _values(Case(0.0, 0.0, [], []), query, [(0.0, 1.0)])


def separates(case: Case, truth: Truth, query: str) -> bool:
    """Whether a query's values in the windows during the fault are apart from those in the windows before it.

    Raises:
        BadAnswer: when it does not return one number.
    """
    if truth.onset is None:
        return False
    before, during = windows(case.began, truth.onset, truth.ended)
    values = _values(case, query, [*before, *during])
    steady, fault = values[: len(before)], values[len(before) :]
    if not steady or not fault:
        return False
    gap = max(min(fault) - max(steady), min(steady) - max(fault))
    return gap > 0 and gap >= MIN_GAP * (max(steady) - min(steady))


def windows(began: float, onset: float, ended: float) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The windows before a fault and during it, all of the same length, each pair the start and the end."""
    ended -= LATE
    length = min(MAX_WINDOW, (onset - BEFORE - began) / WINDOWS, (ended - onset) / WINDOWS)
    if length <= 0:
        return [], []

    def last(end: float) -> list[tuple[float, float]]:
        return [(end - number * length, end - (number - 1) * length) for number in range(WINDOWS, 0, -1)]

    return last(onset - BEFORE), last(ended)


def _values(case: Case, query: str, times: Sequence[tuple[float, float]]) -> list[float]:
    expression = promql.expression(query)
    if expression is not None:
        made = [window(case.scrapes, start, end, EPOCH - start, with_those_before=True) for start, end in times]
        return promql.values(expression, made, EPOCH + min((end - start for start, end in times), default=0.0))
    values = []
    samples = mentions_samples(query)
    with tempfile.TemporaryDirectory(prefix="dicelab-mystery-") as scratch:
        for number, (start, end) in enumerate(times):
            directory = Path(scratch) / str(number)
            write_window(case, directory, start, end, EPOCH, samples)
            try:
                with Tables.of(directory, samples) as tables:
                    rows = tables.query(query).rows
            except InputError as error:
                raise BadAnswer(f"query: {error}") from None
            values.append(_number(rows))
    return values


def _number(rows: Sequence[tuple[Any, ...]]) -> float:
    """The one number of a result; 0 for NULL and for no row."""
    if not rows:
        return 0.0
    if len(rows) != 1 or len(rows[0]) != 1:
        shape = Counter(map(len, rows))
        raise BadAnswer(f"query: one row with one number is expected, not {len(rows)} with {max(shape)}")
    value = rows[0][0]
    if value is None:
        return 0.0
    if isinstance(value, bool | int | float | Decimal):
        return float(value)
    raise BadAnswer(f"query: a number is expected, not {str(value)!r:.40}")
