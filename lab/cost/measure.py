"""What was observed of a lab, and what it takes: bytes by signal and service, series by metric and label."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lab.cost import otlp
from lab.cost.asked import Asked
from lab.cost.otlp import Size, SpanRecord
from lab.signals import Line, Sample

INFRASTRUCTURE = ("process_", "python_")  # the metrics of every Python process
SLOW = 1.5  # seconds: a roll that takes longer misses the objective


@dataclass(frozen=True)
class LineRecord:
    """One log line.

    Attributes:
        text: as it is in the file, with its newline.
        event: its name in the registry, else its message.
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
        rolls: how many were requested; those of a batch count each.
        traces: the ids of the requests' traces, all of them.
        spans: of these traces, as far as they were kept.
        lines: of these traces.
        pages: of each service, after the rolls.
        interval: seconds between two scrapes.
    """

    rolls: int
    traces: frozenset[str]
    spans: tuple[SpanRecord, ...]
    lines: tuple[LineRecord, ...]
    pages: Mapping[str, Page]
    interval: float = 5.0

    def healthy(self) -> frozenset[str]:
        """The kept traces that neither failed nor were slow, by the rules that tail sampling has."""
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
    """A name among spans or lines: how many and their bytes, uncompressed, and who asks for them."""

    service: str
    name: str
    count: int
    size: int
    asked: str


class LabelShare(NamedTuple):
    """What a label contributes: the series there are of the metrics that have it, and would be without it."""

    label: str
    series: int
    without: int
    users: tuple[str, ...]  # the panels, rules and alerts that name it

    @property
    def contributes(self) -> int:
        return self.series - self.without


class Unused(NamedTuple):
    """Series that nobody asks for.

    Attributes:
        in_code: whether the page or a command of the lab names the metric all the same.
    """

    service: str
    name: str
    series: int
    in_code: bool


@dataclass(frozen=True)
class Measurement:
    """The result: sizes are of all rolls together, by service; series are those at the end.

    Attributes:
        kept: of ``traces`` traces, those that have spans.
        scrape: bytes of each service's page.
        labels: what each label contributes, most first.
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
        """Bytes a roll of all services: raw, compressed."""
        total = sum(sizes.values(), Size())
        return total.raw / self.rolls, total.compressed / self.rolls


def lines_size(lines: Iterable[LineRecord]) -> Size:
    text = b"".join(record.text for record in lines)
    return Size(len(text), len(gzip.compress(text)) if text else 0)


def measure(observed: Observed, asked: Asked | None = None) -> Measurement:
    """Measure what was observed; with ``asked`` also who asks for it."""
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
        span_names=_span_names(observed, asked),
        events=_events(observed, asked),
        labels=label_shares(series, asked),
        unused=unused_series(series, asked) if asked else [],
    )


def _span_names(observed: Observed, asked: Asked | None) -> list[Volume]:
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    users: dict[tuple[str, str], str] = {}
    for record in observed.spans:
        key = record.span.service, span_name(record)
        count[key] += 1
        size[key] += record.size
        if asked and not users.get(key):
            users[key] = asked.span(record.span)
    return [Volume(*key, count[key], total, users.get(key, "")) for key, total in size.most_common()]


def span_name(record: SpanRecord) -> str:
    """The name of a span, the rolls of a batch under one."""
    index = record.span.attributes.get("async.roll_index")
    return "roll {index}" if index is not None and record.span.name == f"roll {index}" else record.span.name


def _events(observed: Observed, asked: Asked | None) -> list[Volume]:
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    users: dict[tuple[str, str], set[str]] = {}
    for record in observed.lines:
        key = record.service, record.event
        count[key] += 1
        size[key] += len(record.text)
        if asked:
            users.setdefault(key, set()).add(asked.line(record.line, record.text.decode(errors="replace")))
    return [Volume(*key, count[key], total, _strongest(users.get(key, set()))) for key, total in size.most_common()]


def _strongest(found: set[str]) -> str:
    return next((kind for kind in ("filter", "list") if kind in found), "")


def label_shares(series: Iterable[Series], asked: Asked | None = None) -> list[LabelShare]:
    """What each label contributes to the number of series, most first."""
    with_label: dict[str, set[Series]] = {}
    for one in series:
        for label, _ in one.labels:
            with_label.setdefault(label, set()).add(one)
    shares = [
        LabelShare(
            label,
            len(found),
            len({_without(one, label) for one in found}),
            tuple(asked.label_users(label)) if asked else (),
        )
        for label, found in with_label.items()
    ]
    return sorted(shares, key=lambda share: (-share.contributes, share.label))


def _without(series: Series, label: str) -> Series:
    return series._replace(labels=frozenset(pair for pair in series.labels if pair[0] != label))


def unused_series(series: Iterable[Series], asked: Asked) -> list[Unused]:
    """The series that no dashboard, rule or alert asks for, by service and name, most first."""
    count = Counter((one.service, one.name) for one in series if not is_asked(one, asked))
    return [Unused(service, name, number, asked.in_code(name)) for (service, name), number in count.most_common()]


def is_asked(series: Series, asked: Asked) -> bool:
    """Whether a query selects a series; a histogram's buckets belong together."""
    labels = {name: value for name, value in series.labels if name != "le"}
    return asked.series(series.name, {**labels, "job": series.service})
