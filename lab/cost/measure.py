"""The telemetry of some rolls, and its size: bytes by signal and service, series by metric and label."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lab.cost import otlp
from lab.cost.otlp import Size, SpanRecord
from lab.cost.queries import Queries
from lab.signals import Line, Sample

SLOW = 1.5  # seconds; a slower roll misses the latency objective


@dataclass(frozen=True)
class LineRecord:
    """One log line.

    Attributes:
        text: the line in the file, with its newline.
        event: its name in the registry, or its message if the registry does not have it.
    """

    service: str
    text: bytes
    line: Line
    event: str


@dataclass(frozen=True)
class Page:
    """A service's page of metrics: its bytes, and its samples."""

    size: Size
    samples: tuple[Sample, ...]


class Series(NamedTuple):
    """A series as a service exposes it: the service, the sample's name, its labels."""

    service: str
    name: str
    labels: frozenset[tuple[str, str]]


def as_series(service: str, sample: Sample) -> Series:
    return Series(service, sample.name, frozenset(sample.labels.items()))


@dataclass(frozen=True)
class Observed:
    """What a lab showed of some rolls.

    Attributes:
        rolls: how many were requested; each roll of a batch counts.
        traces: the trace ids of all requests.
        spans: the spans of these traces that were kept.
        lines: the log lines of these traces.
        pages: the ``/metrics`` page of each service, after the rolls.
        interval: seconds between two scrapes.
    """

    rolls: int
    traces: frozenset[str]
    spans: tuple[SpanRecord, ...]
    lines: tuple[LineRecord, ...]
    pages: Mapping[str, Page]
    interval: float = 5.0

    def healthy(self) -> frozenset[str]:
        """The kept traces that neither failed nor were slow, by the rules of tail sampling."""
        failed: set[str] = set()
        begin: dict[str, int] = {}
        end: dict[str, int] = {}
        for record in self.spans:
            span = record.span
            if span.failed:
                failed.add(span.trace_id)
            begin[span.trace_id] = min(span.start, begin.get(span.trace_id, span.start))
            end[span.trace_id] = max(span.end, end.get(span.trace_id, span.end))
        return frozenset(
            trace_id for trace_id in begin if trace_id not in failed and end[trace_id] - begin[trace_id] < SLOW * 1e9
        )

    def series(self) -> list[Series]:
        return [as_series(service, sample) for service, page in self.pages.items() for sample in page.samples]


@dataclass(frozen=True)
class Volume:
    """All spans or lines with one name.

    Attributes:
        size: uncompressed bytes.
        asked: which kind of query returns them, as :meth:`Queries.span` and :meth:`Queries.line` say.
    """

    service: str
    name: str
    count: int
    size: int
    asked: str


class LabelShare(NamedTuple):
    """How many series the metrics with a label have, and how many they would have without it."""

    label: str
    series: int
    without: int
    users: tuple[str, ...]  # the panels, rules and alerts that name it

    @property
    def contributes(self) -> int:
        return self.series - self.without


class Unused(NamedTuple):
    """Series of a metric that no dashboard, rule or alert selects.

    Attributes:
        in_code: whether the page or a command of the lab names the metric.
    """

    service: str
    name: str
    series: int
    in_code: bool


@dataclass(frozen=True)
class Measurement:
    """The result. Sizes are sums over all rolls, by service; series are counted after the last roll.

    Attributes:
        kept: how many of the ``traces`` have spans.
        scrape: the size of each service's ``/metrics`` page.
        labels: how many series each label contributes, the most first.
    """

    rolls: int
    traces: int
    kept: int
    interval: float
    spans: Mapping[str, Size]
    lines: Mapping[str, Size]
    scrape: Mapping[str, Size]
    series: Mapping[str, int]
    span_names: list[Volume]
    events: list[Volume]
    labels: list[LabelShare] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    @property
    def samples_per_second(self) -> float:
        return sum(self.series.values()) / self.interval

    def per_roll(self, sizes: Mapping[str, Size]) -> tuple[float, float]:
        """Bytes for each roll, summed over all services: raw, compressed."""
        total = sum(sizes.values(), Size())
        return total.raw / self.rolls, total.compressed / self.rolls


def lines_size(lines: Iterable[LineRecord]) -> Size:
    text = b"".join(record.text for record in lines)
    return Size(len(text), len(gzip.compress(text)) if text else 0)


def measure(observed: Observed, queries: Queries | None = None) -> Measurement:
    """Measure what was observed.

    Args:
        queries: ``None``: the result does not say which queries use the telemetry.
    """
    services = sorted(
        {*observed.pages, *(r.span.service for r in observed.spans), *(r.service for r in observed.lines)}
    )
    series = observed.series()
    return Measurement(
        rolls=observed.rolls,
        traces=len(observed.traces),
        kept=len({record.span.trace_id for record in observed.spans}),
        interval=observed.interval,
        spans={name: otlp.size(r for r in observed.spans if r.span.service == name) for name in services},
        lines={name: lines_size(r for r in observed.lines if r.service == name) for name in services},
        scrape={name: page.size for name, page in observed.pages.items()},
        series=dict(Counter(one.service for one in series)),
        span_names=_span_names(observed, queries),
        events=_events(observed, queries),
        labels=label_shares(series, queries),
        unused=unused_series(series, queries) if queries else [],
    )


def _span_names(observed: Observed, queries: Queries | None) -> list[Volume]:
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    users: dict[tuple[str, str], str] = {}
    for record in observed.spans:
        key = record.span.service, span_name(record)
        count[key] += 1
        size[key] += record.size
        if queries and not users.get(key):
            users[key] = queries.span(record.span)
    return [Volume(*key, count[key], total, users.get(key, "")) for key, total in size.most_common()]


def span_name(record: SpanRecord) -> str:
    """The name of a span; all rolls of a batch share one."""
    index = record.span.attributes.get("async.roll_index")
    return "roll {index}" if index is not None and record.span.name == f"roll {index}" else record.span.name


def _events(observed: Observed, queries: Queries | None) -> list[Volume]:
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    users: dict[tuple[str, str], set[str]] = {}
    for record in observed.lines:
        key = record.service, record.event
        count[key] += 1
        size[key] += len(record.text)
        if queries:
            users.setdefault(key, set()).add(queries.line(record.line, record.text.decode(errors="replace")))
    return [Volume(*key, count[key], total, _strongest(users.get(key, set()))) for key, total in size.most_common()]


def _strongest(found: set[str]) -> str:
    return next((kind for kind in ("filter", "list") if kind in found), "")


def label_shares(series: Iterable[Series], queries: Queries | None = None) -> list[LabelShare]:
    """How many series each label contributes, the most first."""
    with_label: dict[str, set[Series]] = {}
    for one in series:
        for label, _ in one.labels:
            with_label.setdefault(label, set()).add(one)
    shares = [
        LabelShare(
            label,
            len(found),
            len({_without(one, label) for one in found}),
            tuple(queries.label_users(label)) if queries else (),
        )
        for label, found in with_label.items()
    ]
    return sorted(shares, key=lambda share: (-share.contributes, share.label))


def _without(series: Series, label: str) -> Series:
    return series._replace(labels=frozenset(pair for pair in series.labels if pair[0] != label))


def unused_series(series: Iterable[Series], queries: Queries) -> list[Unused]:
    """The series that no dashboard, rule or alert selects, counted by service and name, the most first."""
    count = Counter((one.service, one.name) for one in series if not is_queried(one, queries))
    return [Unused(service, name, number, queries.in_code(name)) for (service, name), number in count.most_common()]


def is_queried(series: Series, queries: Queries) -> bool:
    """Whether a query selects a series; a histogram's buckets count as one series."""
    labels = {name: value for name, value in series.labels if name != "le"}
    return queries.series(series.name, {**labels, "job": series.service})
