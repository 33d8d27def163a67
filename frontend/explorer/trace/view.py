"""The trace view: the waterfall, time by service, the selected span, and another trace to compare."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend.explorer.context import Context
from frontend.explorer.grafana import explore_link
from frontend.explorer.model import TRACE_ID, SourceError, TraceQuery, TraceSummary
from frontend.explorer.trace.arrange import Row, Segment, Trace, arrange

POLL = 0.4  # seconds between two fetches of a trace that is still arriving
SETTLED = 3.0  # seconds after its end for which a trace that seems complete is fetched again
ARRIVING = 15.0  # the same for one with missing spans
CANDIDATES = 30  # traces offered to compare with
SPAN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Drawn:
    """A trace with its critical path by span: the segments, and their total in nanoseconds."""

    trace: Trace
    paths: Mapping[str, Sequence[Segment]]
    path_times: Mapping[str, int]


@dataclass
class Difference:
    """An operation in two traces: how many spans it has in each, and their self time in nanoseconds."""

    service: str
    operation: str
    count: int = 0
    other_count: int = 0
    own: int = 0
    other_own: int = 0


class TraceView:
    """Shows one trace at a time, or two when the user compares."""

    name, title = "trace", "Trace"
    regions = ("trace", "waterfalls", "detail")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._trace_id = ""
        self._trace: Trace | None = None
        self._span_id = ""  # of the span that is selected
        self._compared_id = ""
        self._compared: Trace | None = None
        self._candidates: list[TraceSummary] = []
        self._asked = 0.0
        context.bridge.on("trace.select", self._select)
        context.bridge.on("trace.lines", self._show_lines)
        context.bridge.on("trace.compare", self._compare)

    @property
    def trace_id(self) -> str:
        return self._trace_id

    def read(self, query: Mapping[str, str]) -> None:
        trace_id, span_id, compared = (query.get(name, "") for name in ("trace", "span", "compare"))
        self._compared_id = compared if TRACE_ID.fullmatch(compared) else ""
        self._compared = None
        self.open(trace_id if TRACE_ID.fullmatch(trace_id) else "", span_id if SPAN_ID.fullmatch(span_id) else "")

    def query(self) -> dict[str, str]:
        found = {"trace": self._trace_id, "span": self._span_id, "compare": self._compared_id}
        return {name: value for name, value in found.items() if value}

    def open(self, trace_id: str, span_id: str = "") -> None:
        """Show a trace, now or as soon as it arrives, with one of its spans selected."""
        self._asked = time.monotonic()
        if trace_id != self._trace_id:
            self._trace_id, self._trace = trace_id, None
        self._span_id = span_id
        self._context.bridge.send(select=span_id)
        self.draw()

    def draw(self) -> None:
        self._draw_head()
        self._draw_spans()
        self._draw_detail()

    def show_failure(self, message: str) -> None:
        self._context.show("trace", "failure.html", message=message)

    async def refresh(self) -> float | None:
        source, trace_id, compared_id = self._context.telemetry.traces, self._trace_id, self._compared_id
        if not trace_id or source is None:
            return None
        trace = arrange(trace_id, await source.trace(trace_id))
        compared = arrange(compared_id, await source.trace(compared_id)) if compared_id else None
        over = self._over(trace)
        if over:  # the candidates are not urgent
            try:
                query = TraceQuery(limit=CANDIDATES + 1)
                self._candidates = [entry for entry in await source.traces(query) if entry.trace_id != trace_id]
            except SourceError:
                self._candidates = []
        if (trace_id, compared_id) == (self._trace_id, self._compared_id):
            first = self._trace is None
            changed = self._trace != trace or self._compared != compared
            self._trace, self._compared = trace, compared
            self._draw_head()
            if changed or first:
                self._draw_spans()
                self._draw_detail()
        return None if over else POLL

    def _over(self, trace: Trace) -> bool:
        """Whether no more spans of this trace are expected."""
        if not trace.rows:
            return time.monotonic() - self._asked > ARRIVING and not self._context.telemetry.behind
        return time.time() - trace.finish / 1e9 > (ARRIVING if trace.missing else SETTLED)

    # --- what the user does ---

    def _select(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        trace_id, span_id = str(value.get("trace")), str(value.get("span"))
        if trace_id in (self._trace_id, self._compared_id) and SPAN_ID.fullmatch(span_id):
            self._span_id = span_id  # the browser marks the row itself
            self._draw_detail()
            self._context.changed(False)

    def _show_lines(self, span_id: Any) -> None:
        trace_id = self._trace_id
        if self._compared and self._row(self._compared):
            trace_id = self._compared_id
        self._context.show_lines(trace_id, span_id if SPAN_ID.fullmatch(str(span_id)) else "")

    def _compare(self, trace_id: Any) -> None:
        self._compared_id = trace_id if TRACE_ID.fullmatch(str(trace_id)) else ""
        self._compared = None
        self._context.changed(True)

    # --- what is shown ---

    def _row(self, trace: Trace | None) -> Row | None:
        return next((row for row in trace.rows if row.span.span_id == self._span_id), None) if trace else None

    def _draw_head(self) -> None:
        trace = self._trace
        root = trace.rows[0].span if trace and trace.rows else None
        inner = (
            next((row.span.name for row in trace.rows[1:] if root and row.span.service != root.service), "")
            if trace
            else ""
        )
        self._context.show(
            "trace",
            "trace/head.html",
            trace_id=self._trace_id,
            trace=trace,
            title=f"{root.name}{f' → {inner}' if inner else ''}" if root else "",
            failed=sum(row.span.failed for row in trace.rows) if trace else 0,
            over=trace is not None and self._over(trace),
            services=_services(trace) if trace else (),
            candidates=self._candidates,
            compared=self._compared_id,
            link=explore_link(self._context, "tempo", [{"queryType": "traceql", "query": self._trace_id}]),
        )

    def _draw_spans(self) -> None:
        trace, compared = self._trace, self._compared
        both = trace is not None and trace.rows and compared is not None and compared.rows
        self._context.show(
            "waterfalls",
            "trace/spans.html",
            first=_drawn(trace) if trace and trace.rows else None,
            second=_drawn(compared) if compared and compared.rows else None,
            compared=self._compared_id if compared else "",
            differences=_differences(trace, compared) if both and trace and compared else (),
        )

    def _draw_detail(self) -> None:
        trace = self._trace if self._row(self._trace) else self._compared
        row = self._row(trace)
        path = sum(part.finish - part.start for part in trace.critical if part.span is row.span) if trace and row else 0
        self._context.show("detail", "trace/detail.html", row=row, path=path, trace=self._trace)


def _drawn(trace: Trace) -> Drawn:
    paths: dict[str, list[Segment]] = defaultdict(list)
    for part in trace.critical:
        paths[part.span.span_id].append(part)
    times = {span_id: sum(part.finish - part.start for part in parts) for span_id, parts in paths.items()}
    return Drawn(trace, paths, times)


def _services(trace: Trace) -> list[tuple[str, int, int]]:
    """Each service's own time in nanoseconds, and its share of the critical path in percent."""
    path: dict[str, int] = defaultdict(int)
    for part in trace.critical:
        path[part.span.service] += part.finish - part.start
    total = max(1, sum(path.values()))
    ordered = sorted(trace.own.items(), key=lambda item: -item[1])
    return [(service, own, round(100 * path[service] / total)) for service, own in ordered]


def _differences(trace: Trace, other: Trace) -> list[Difference]:
    """All operations of two traces; the ones whose self time differs most come first."""
    found: dict[tuple[str, str], Difference] = {}
    for place, rows in enumerate((trace.rows, other.rows)):
        for row in rows:
            operation = (
                re.sub(r"\d+", "N", row.operation) if re.fullmatch(r"roll \d+", row.operation) else row.operation
            )
            entry = found.setdefault((row.span.service, operation), Difference(row.span.service, operation))
            if place:
                entry.other_count += 1
                entry.other_own += row.own
            else:
                entry.count += 1
                entry.own += row.own
    return sorted(found.values(), key=lambda entry: -abs(entry.own - entry.other_own))
