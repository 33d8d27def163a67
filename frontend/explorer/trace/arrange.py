"""A trace in display order, with self times and the critical path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from frontend.explorer.attributes import attribute
from frontend.explorer.model import CLIENT, MAX_SPANS, Span


@dataclass(frozen=True)
class Row:
    """A span and its position.

    Attributes:
        depth: 0 for a span without a parent in this trace.
        orphan: whether it names a parent that is missing.
        children: how many spans are directly below it.
        own: its self time: nanoseconds in which none of its children was running.
        operation: its name; for a call also its destination: ``GET → dice-roller``.
    """

    span: Span
    depth: int
    orphan: bool
    children: int = 0
    own: int = 0
    operation: str = ""


@dataclass(frozen=True)
class Segment:
    """A part of the critical path, in nanoseconds."""

    span: Span
    start: int
    finish: int


@dataclass(frozen=True)
class Trace:
    """A trace in display order: parents before children, siblings by their start.

    Attributes:
        own: the self time of each service, in nanoseconds; overlapping spans of one service count once.
        critical: the critical path, from the start of the trace to its end.
        missing: the span whose absence shows that the trace is incomplete: a root, a parent, the server side of a call;
            empty if it is complete.
    """

    trace_id: str
    rows: Sequence[Row]
    own: Mapping[str, int]
    critical: Sequence[Segment]
    missing: str
    start: int = 0
    finish: int = 0
    hidden: int = 0  # spans beyond MAX_SPANS

    @property
    def duration(self) -> int:
        return self.finish - self.start

    @property
    def failed(self) -> bool:
        return any(row.span.failed for row in self.rows)


def arrange(trace_id: str, spans: Iterable[Span]) -> Trace:
    """Arrange the spans of a trace, and compute its self times and critical path."""
    by_id = {span.span_id: span for span in spans}
    below: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(by_id.values(), key=lambda span: (span.start, span.span_id)):
        below[span.parent_id if span.parent_id in by_id else ""].append(span)
    rows: list[Row] = []
    seen: set[str] = set()
    # Spans in a cycle of parents have no root: after the roots, they start trees of their own.
    for top in [*below[""], *by_id.values()]:
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            children = [child for child in below[span.span_id] if child is not span]
            rows.append(
                Row(
                    span,
                    depth,
                    bool(span.parent_id) and span.parent_id not in by_id,
                    len(children),
                    sum(finish - start for start, finish in _alone(span, children)),
                    _operation(span, children),
                )
            )
            waiting += [(child, depth + 1) for child in reversed(children)]
    if not rows:
        return Trace(trace_id, (), {}, (), "every span")
    critical = _critical_path([row.span for row in rows if row.depth == 0], below)
    return Trace(
        trace_id,
        rows[:MAX_SPANS],
        _own_times(rows, below),
        critical,
        _missing(rows, below),
        min(row.span.start for row in rows),
        max(row.span.finish for row in rows),
        max(0, len(rows) - MAX_SPANS),
    )


def _operation(span: Span, children: Sequence[Span]) -> str:
    """A span's name; calls of the same method are distinguished by their destination."""
    if span.kind != CLIENT:
        return span.name
    database = attribute(span.attributes, "db.system.name")
    if database:
        return f"{span.name} → {database}"
    called = next((child.service for child in children if child.service != span.service), "")
    return f"{span.name} → {called}" if called else span.name


def _missing(rows: Sequence[Row], below: Mapping[str, Sequence[Span]]) -> str:
    if any(row.orphan for row in rows):
        return "a span that others name as their parent"
    if not any(not row.span.parent_id for row in rows):
        return "the root"
    for row in rows:
        span = row.span
        called = span.kind == CLIENT and attribute(span.attributes, "http.response.status_code") is not None
        if called and not below.get(span.span_id):
            return "the answering side of a call"
    return ""


def _critical_path(tops: Sequence[Span], below: Mapping[str, Sequence[Span]]) -> list[Segment]:
    """Walk backwards from the end of the trace: the path runs through the child that finished last, and so on in it."""
    top = max(tops, key=lambda span: span.finish)
    segments: list[Segment] = []
    seen: set[str] = set()
    # Spans to visit, and the time up to which each is on the path.
    waiting: list[tuple[Span, int]] = [(top, top.finish)]
    while waiting:
        span, until = waiting.pop()
        seen.add(span.span_id)
        children = sorted(below.get(span.span_id, ()), key=lambda child: child.finish)
        cursor = until
        inside: list[tuple[Span, int]] = []
        for child in reversed(children):
            finish = min(child.finish, cursor)
            start = max(child.start, span.start)
            if finish <= start or child.span_id in seen:
                continue
            if finish < cursor:
                segments.append(Segment(span, finish, cursor))
            inside.append((child, finish))
            cursor = start
        if span.start < cursor:
            segments.append(Segment(span, span.start, cursor))
        waiting += inside
    return sorted(segments, key=lambda segment: segment.start)


def _alone(span: Span, children: Sequence[Span]) -> list[tuple[int, int]]:
    """The parts of a span in which none of its children, sorted by their start, was running."""
    stretches = []
    cursor = span.start
    for child in children:
        if child.start > cursor:
            stretches.append((cursor, min(child.start, span.finish)))
        cursor = max(cursor, child.finish)
    stretches.append((cursor, span.finish))
    return [(start, finish) for start, finish in stretches if finish > start]


def _own_times(rows: Sequence[Row], below: Mapping[str, Sequence[Span]]) -> dict[str, int]:
    stretches: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        stretches[row.span.service] += _alone(row.span, below.get(row.span.span_id, ()))
    return {service: _covered(parts) for service, parts in stretches.items()}


def _covered(stretches: Iterable[tuple[int, int]]) -> int:
    """The time that the parts cover together, in nanoseconds."""
    total = 0
    reached = 0
    for start, finish in sorted(stretches):
        if finish > reached:
            total += finish - max(start, reached)
            reached = finish
    return total
