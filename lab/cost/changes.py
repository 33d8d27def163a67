"""Changes that would make telemetry cost less, and what each would lose.

For each change, the telemetry that it would remove is left out of what was observed, and the rest is measured again.
Two changes may save the same bytes, so their savings do not add up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from opentelemetry.proto.trace.v1 import trace_pb2 as trace

from lab.cost.measure import (
    LineRecord,
    Measurement,
    Observed,
    Page,
    as_series,
    is_queried,
    label_shares,
    measure,
    span_name,
)
from lab.cost.otlp import SpanRecord
from lab.cost.prices import Prices
from lab.cost.queries import Queries
from lab.signals import PROCESS_METRICS

KEPT_SHARE = 0.1  # of healthy traces and of their lines
INTERVAL_FACTOR = 3  # by which the scrape interval is lengthened
MAX_CHANGES = 5  # in the report
# Every line and every query needs these.
CORE_FIELDS = frozenset({"timestamp", "level", "logger", "message", "trace_id", "span_id"})


@dataclass(frozen=True)
class Change:
    """A change, and what it saves.

    Attributes:
        title: the change, in words.
        loses: what is lost by it, in words.
        bytes_a_roll: uncompressed bytes of spans and lines.
        series, samples_per_second: of metrics.
        money: a month, by the price file, in its currency.
    """

    title: str
    loses: str
    bytes_a_roll: float
    series: int
    samples_per_second: float
    money: float


class Changes:
    """The possible changes to a lab.

    Args:
        sampled: whether the lab uses tail sampling already.
    """

    def __init__(
        self, observed: Observed, measured: Measurement, queries: Queries, prices: Prices, sampled: bool = False
    ) -> None:
        self._sampled = sampled
        self._observed = observed
        self._measured = measured
        self._queries = queries
        self._prices = prices

    def best(self, count: int = MAX_CHANGES) -> list[Change]:
        """The changes that save most money, the best first; without those that save none."""
        found = [change for change in self._candidates() if change.money > 0]
        return sorted(found, key=lambda change: -change.money)[:count]

    def _candidates(self) -> Iterable[Change]:
        if not self._sampled:
            yield self._tail_sampling()
        yield self._line_sampling()
        yield self._retention()
        yield self._slower_scrapes()
        for change in (
            self._unqueried_spans(),
            self._attribute(),
            self._event(),
            self._field(),
            self._unused_metrics(),
            self._label(),
            self._half_of_the_buckets(),
        ):
            if change is not None:
                yield change

    def _change(self, title: str, loses: str, left: Observed, share: float = 1.0) -> Change:
        """The change after which ``left`` remains.

        Args:
            share: how much of the missing telemetry the change saves, from 0 to 1.
        """
        before, after = self._measured, measure(left)

        def saved(spans: bool) -> float:
            one, other = (before.spans, after.spans) if spans else (before.lines, after.lines)
            return share * (before.per_roll(one)[0] - after.per_roll(other)[0])

        return Change(
            title,
            loses,
            saved(True) + saved(False),
            sum(before.series.values()) - sum(after.series.values()),
            before.samples_per_second - after.samples_per_second,
            share * (self._prices.month(before).total - self._prices.month(after).total),
        )

    # --- traces ---

    def _tail_sampling(self) -> Change:
        healthy = self._observed.healthy()
        left = tuple(record for record in self._observed.spans if record.span.trace_id not in healthy)
        return self._change(
            f"keep {KEPT_SHARE:.0%} of the healthy traces, and all that failed or were slow (SAMPLING=tail)",
            f"the trace of {1 - KEPT_SHARE:.0%} of the rolls that went well"
            f" ({len(healthy)} of {self._measured.kept} here); an exemplar or a trace id in a line may lead nowhere",
            replace(self._observed, spans=left),
            1 - KEPT_SHARE,
        )

    def _unqueried_spans(self) -> Change | None:
        names = {(one.service, one.name) for one in self._measured.span_names if not one.asked}
        left = tuple(r for r in self._observed.spans if (r.span.service, span_name(r)) not in names)
        if not names:
            return None
        listed = ", ".join(sorted({name for _, name in names}))
        return self._change(
            f"no spans that no panel asks for: {listed}",
            "where the time goes between the calls of services, in the traces that show it now",
            replace(self._observed, spans=left),
        )

    def _attribute(self) -> Change | None:
        """Remove the span attribute that takes the most bytes of those that no query, page or command names."""
        sizes: Counter[str] = Counter()
        for record in self._observed.spans:
            for attribute in record.message.attributes:
                sizes[attribute.key] += attribute.ByteSize() + 2
        for key, _ in sizes.most_common():
            if not any(query.names(key) for query in self._queries.spans) and not self._queries.in_code(key):
                spans = tuple(_without_attribute(record, key) for record in self._observed.spans)
                return self._change(
                    f"no attribute {key} on spans",
                    f"traces cannot be searched by {key}; no panel does so now",
                    replace(self._observed, spans=spans),
                )
        return None

    def _retention(self) -> Change:
        prices = self._prices
        half = replace(prices, traces=replace(prices.traces, retention_days=prices.traces.retention_days / 2))
        return Change(
            f"keep traces for {half.traces.retention_days:g} days instead of {prices.traces.retention_days:g}",
            "the traces of older incidents",
            0.0,
            0,
            0.0,
            prices.month(self._measured).total - half.month(self._measured).total,
        )

    # --- lines ---

    def _line_sampling(self) -> Change:
        healthy = self._observed.healthy()
        dropped = [r for r in self._observed.lines if r.line.trace_id in healthy and r.line.level in ("DEBUG", "INFO")]
        dropped = [r for r in dropped if r.line.fields.get("usage") is not True]
        ids = {id(record) for record in dropped}
        return self._change(
            f"keep {KEPT_SHARE:.0%} of the INFO lines of healthy rolls, by trace id",
            "the lines of a single roll that went well; counts of lines have to be scaled up",
            replace(self._observed, lines=tuple(r for r in self._observed.lines if id(r) not in ids)),
            1 - KEPT_SHARE,
        )

    def _event(self) -> Change | None:
        """Remove the event that takes the most bytes of those that are only shown in lists of all lines."""
        for one in self._measured.events:
            lines = [r for r in self._observed.lines if (r.service, r.event) == (one.service, one.name)]
            if one.asked != "filter" and all(r.line.level in ("DEBUG", "INFO") for r in lines):
                ids = {id(record) for record in lines}
                return self._change(
                    f"no lines {one.name} of the {one.service}",
                    f"{one.count / self._measured.rolls:.1f} lines a roll in the lists of all lines;"
                    " no query asks for them by content",
                    replace(self._observed, lines=tuple(r for r in self._observed.lines if id(r) not in ids)),
                )
        return None

    def _field(self) -> Change | None:
        """Remove the log field that takes the most bytes of those that no query, page or command names."""
        sizes: Counter[str] = Counter()
        for record in self._observed.lines:
            for name, value in record.line.fields.items():
                sizes[name] += len(json.dumps({name: value})) - 1
        for name, _ in sizes.most_common():
            named = any(query.names(name) for query in self._queries.lines) or self._queries.in_code(name)
            if name in CORE_FIELDS or named:
                continue
            lines = tuple(_without_field(record, name) for record in self._observed.lines)
            return self._change(
                f"no field {name} in lines",
                f"lines cannot be filtered by {name}; no panel does so now",
                replace(self._observed, lines=lines),
            )
        return None

    # --- metrics ---

    def _pages(self, pages: dict[str, Page]) -> Observed:
        return replace(self._observed, pages=pages)

    def _unused_metrics(self) -> Change | None:
        names = sorted(
            {one.name for one in self._measured.unused if not one.in_code and not one.name.startswith(PROCESS_METRICS)}
        )
        if not names:
            return None
        unused = {one for one in self._observed.series() if one.name in names and not is_queried(one, self._queries)}
        pages = {
            service: replace(
                page, samples=tuple(sample for sample in page.samples if as_series(service, sample) not in unused)
            )
            for service, page in self._observed.pages.items()
        }
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return self._change(
            f"no series that nobody asks for: {listed}",
            "questions that no dashboard, rule, alert, page or command asks now",
            self._pages(pages),
        )

    def _label(self) -> Change | None:
        """Remove the label that contributes the most series, preferably one that no query names."""
        shares = [share for share in label_shares(self._observed.series(), self._queries) if share.label != "le"]
        shares = [share for share in shares if share.contributes > 0]
        if not shares:
            return None
        share = next((one for one in shares if not one.users), shares[0])
        pages = {}
        for service, page in self._observed.pages.items():
            kept = {}
            for sample in page.samples:
                labels = {name: value for name, value in sample.labels.items() if name != share.label}
                kept[sample.name, frozenset(labels.items())] = sample._replace(labels=labels)
            pages[service] = replace(page, samples=tuple(kept.values()))
        users = (
            f"{len(share.users)} panels, rules and alerts name it, such as {share.users[0]}"
            if share.users
            else "no query names it"
        )
        return self._change(f"no label {share.label}", f"no figures by {share.label}: {users}", self._pages(pages))

    def _half_of_the_buckets(self) -> Change | None:
        """Keep every second bound of each histogram, and the bounds that a query names."""
        named = {
            one.value
            for query in self._queries.metrics
            for _, matchers in query.selectors
            for one in matchers
            if one.name == "le"
        }
        pages = {}
        for service, page in self._observed.pages.items():
            bounds: dict[str, set[float]] = {}
            for sample in page.samples:
                if "le" in sample.labels:
                    bounds.setdefault(sample.name, set()).add(float(sample.labels["le"]))
            dropped = {name: set(sorted(each)[:-1][1::2]) for name, each in bounds.items()}
            kept = tuple(
                sample
                for sample in page.samples
                if "le" not in sample.labels
                or sample.labels["le"] in named
                or float(sample.labels["le"]) not in dropped[sample.name]
            )
            pages[service] = replace(page, samples=kept)
        return self._change(
            "half the buckets of each histogram",
            "percentiles are interpolated between bounds twice as far apart; bounds that a query names stay",
            self._pages(pages),
        )

    def _slower_scrapes(self) -> Change:
        slower = self._observed.interval * INTERVAL_FACTOR
        return self._change(
            f"scrape every {slower:g} s instead of {self._observed.interval:g} s",
            f"alerts and panels are up to {slower - self._observed.interval:g} s later, and shorter peaks are missed",
            replace(self._observed, interval=slower),
        )


def _without_attribute(record: SpanRecord, key: str) -> SpanRecord:
    message = trace.Span()
    message.CopyFrom(record.message)
    del message.attributes[:]
    message.attributes.extend(one for one in record.message.attributes if one.key != key)
    return SpanRecord(record.span, message, record.resource, record.scope)


def _without_field(record: LineRecord, name: str) -> LineRecord:
    if name not in record.line.fields:
        return record
    fields = {key: value for key, value in record.line.fields.items() if key != name}
    separators = (", ", ": ") if b'": ' in record.text else (",", ":")  # those of the original line
    return replace(record, text=json.dumps(fields, ensure_ascii=False, separators=separators).encode() + b"\n")
