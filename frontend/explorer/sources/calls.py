"""The heat map and the service map from spans, for a source that cannot aggregate."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from frontend.explorer.attributes import attribute
from frontend.explorer.model import BOUNDS, CLIENT, SERVER, Cell, Edge, Span


def _handled(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind == SERVER and "/static/" not in span.name and span.name != "GET /ws"]


def cells(spans: Sequence[Span], step: int) -> list[Cell]:
    """Handled requests by service, duration and time, in steps of ``step`` nanoseconds."""
    found: dict[tuple[str, int, int], list[Span]] = defaultdict(list)
    for span in _handled(spans):
        found[span.service, span.start // step * step, bisect_right(BOUNDS, span.duration)].append(span)
    return [
        Cell(*key, len(group), sum(span.failed for span in group), max(group, key=_worst).trace_id)
        for key, group in found.items()
    ]


def edges(spans: Sequence[Span]) -> list[Edge]:
    """Calls between services, and to databases."""
    by_id = {span.span_id: span for span in spans}
    found: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in _handled(spans):
        parent = by_id.get(span.parent_id)
        found[parent.service if parent else "", span.service].append(span)
    for span in spans:
        database = attribute(span.attributes, "db.system.name") if span.kind == CLIENT else None
        if database:
            found[span.service, str(database)].append(span)
    return [
        Edge(
            *key,
            len(group),
            sum(span.failed for span in group),
            _quantile(sorted(span.duration for span in group), 0.5),
            _quantile(sorted(span.duration for span in group), 0.95),
            max(group, key=lambda span: span.duration).trace_id,
        )
        for key, group in found.items()
    ]


def _worst(span: Span) -> tuple[bool, int]:
    return span.failed, span.duration


def _quantile(ordered: Sequence[int], share: float) -> float:
    """Interpolated between the two nearest values, as SQL's ``quantile_cont`` does."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
