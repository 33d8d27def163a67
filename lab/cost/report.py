"""The report of ``dicelab cost``: as tables for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lab.cost.agreement import Agreement
from lab.cost.changes import Change
from lab.cost.collect import Run
from lab.cost.measure import Measurement, Unused, Volume
from lab.cost.otlp import Size
from lab.cost.prices import Month, Prices
from lab.signals import PROCESS_METRICS
from lab.terminal import print_table, say

SHOWN = 12  # rows of a table for people; --json has all
ASKED = {"query": "a panel", "map": "the service map", "filter": "a query", "list": "lists of all lines", "": "nobody"}


@dataclass(frozen=True)
class Report:
    """All results."""

    stage: int
    sampling: str
    run: Run
    measured: Measurement
    changes: Sequence[Change]
    agreements: Sequence[Agreement]
    prices: Prices

    @property
    def month(self) -> Month:
        return self.prices.month(self.measured)

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        measured = self.measured
        spans, lines = measured.per_roll(measured.spans), measured.per_roll(measured.lines)
        return {
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": self.stage,
            "sampling": self.sampling or "none",
            "rolls": measured.rolls,
            "requests": self.run.requests,
            "failed": self.run.failed,
            "traces": {"requested": measured.traces, "kept": measured.kept},
            "bytes_a_roll": {
                "spans": {"raw": round(spans[0], 1), "compressed": round(spans[1], 1)},
                "lines": {"raw": round(lines[0], 1), "compressed": round(lines[1], 1)},
            },
            "by_service": {
                name: {
                    "spans": _size(measured.spans[name], measured.rolls),
                    "lines": _size(measured.lines[name], measured.rolls),
                    "scrape": measured.scrape.get(name, Size())._asdict(),
                    "series": measured.series.get(name, 0),
                }
                for name in measured.spans
            },
            "scrape_interval": measured.interval,
            "samples_per_second": round(measured.samples_per_second, 2),
            "series": sum(measured.series.values()),
            "span_names": [_volume(one, measured.rolls) for one in measured.span_names],
            "events": [_volume(one, measured.rolls) for one in measured.events],
            "labels": [
                {**one._asdict(), "users": list(one.users), "contributes": one.contributes} for one in measured.labels
            ],
            "unused": [one._asdict() for one in measured.unused],
            "projection": {
                "example_prices": self.prices.example,
                "prices": asdict(self.prices),
                "month": {**asdict(self.month), "total": self.month.total},
            },
            "changes": [asdict(change) for change in self.changes],
            "agreement": [{**asdict(one), "percent": round(one.percent, 2)} for one in self.agreements],
        }

    def show(self, console: Console) -> None:
        """Print the report."""
        measured, run = self.measured, self.run
        kept = "" if measured.kept == measured.traces else f", {measured.kept} of {measured.traces} traces were kept"
        say(console, f"{measured.rolls} rolls in {run.requests} requests, {run.failed} failed{kept}")
        self._sizes(console)
        _volumes("Spans by name", measured.span_names, measured.rolls, console)
        _volumes("Log volume by event", measured.events, measured.rolls, console)
        self._labels(console)
        self._unused(console)
        self._agreement(console)
        self._projection(console)

    def _sizes(self, console: Console) -> None:
        measured = self.measured
        rows = _table("Bytes a roll", "spans, OTLP", "gzip", "lines", "gzip", "series", "scrape", "gzip")
        for name in measured.spans:
            scrape = measured.scrape.get(name, Size())
            rows.add_row(
                name,
                *_each(measured.spans[name], measured.rolls),
                *_each(measured.lines[name], measured.rolls),
                f"{measured.series.get(name, 0):,}",
                f"{scrape.raw:,}",
                f"{scrape.compressed:,}",
            )
        scrape = sum(measured.scrape.values(), Size())
        rows.add_row(
            "all",
            *(f"{size:,.0f}" for size in (*measured.per_roll(measured.spans), *measured.per_roll(measured.lines))),
            f"{sum(measured.series.values()):,}",
            f"{scrape.raw:,}",
            f"{scrape.compressed:,}",
        )
        print_table(console, rows)
        say(
            console,
            f"{measured.samples_per_second:,.0f} samples a second: a scrape every {measured.interval:g} s,"
            f" {scrape.compressed / measured.interval:,.0f} bytes a second on the wire",
        )

    def _labels(self, console: Console) -> None:
        rows = _table("Series by label", "series with it", "without it", "contributes", "named by")
        for one in self.measured.labels[:SHOWN]:
            users = f"{len(one.users)} queries" if one.users else "nobody"
            rows.add_row(one.label, f"{one.series:,}", f"{one.without:,}", f"{one.contributes:,}", users)
        print_table(console, rows)

    def _unused(self, console: Console) -> None:
        unused = self.measured.unused
        own = [one for one in unused if not one.name.startswith(PROCESS_METRICS)]
        total = sum(one.series for one in unused)
        of_process = total - sum(one.series for one in own)
        say(
            console,
            f"{total:,} of {sum(self.measured.series.values()):,} series are asked for by no dashboard, rule or alert;"
            f" {of_process:,} of them are of every Python process",
        )
        by_name: dict[str, Unused] = {}
        for one in own:
            known = by_name.get(one.name)
            by_name[one.name] = one._replace(series=one.series + known.series) if known else one
        rows = _table("Unused metrics", "series", "in the code of the page or a command")
        for one in sorted(by_name.values(), key=lambda one: -one.series)[:SHOWN]:
            rows.add_row(one.name, f"{one.series:,}", "yes" if one.in_code else "")
        print_table(console, rows)

    def _agreement(self, console: Console) -> None:
        if not self.agreements:
            return
        rows = _table("Compared with the engines", "here", "there", "agreement", "by")
        for one in self.agreements:
            rows.add_row(one.what, f"{one.ours:,.0f}", f"{one.theirs:,.0f}", f"{one.percent:.1f} %", one.engine)
        print_table(console, rows)

    def _projection(self, console: Console) -> None:
        prices, month = self.prices, self.month
        whose = "EXAMPLE prices, of no vendor; --prices FILE takes yours" if prices.example else "your prices"
        say(
            console,
            f"A month with {prices.rolls_a_day:,.0f} rolls a day: {month.total:,.2f} {prices.currency}"
            f" (traces {month.traces:,.2f}, logs {month.logs:,.2f}, metrics {month.metrics:,.2f}); {whose}",
        )
        rows = _table("What would save most", "a month", "bytes a roll", "series", "loses")
        for one in self.changes:
            series = f"-{one.series:,}" if one.series else ""
            size = f"-{one.bytes_a_roll:,.0f}" if one.bytes_a_roll >= 0.5 else ""
            rows.add_row(one.title, f"-{one.money:,.2f}", size, series, one.loses)
        print_table(console, rows)
        say(console, "Each saving is that of one change alone: two of them may save the same bytes.", "dim")


def _table(title: str, *columns: str) -> Table:
    rows = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    rows.add_column("", overflow="fold")
    for column in columns:
        text = column in ("by", "named by", "loses", "asked for by")
        rows.add_column(column, justify="left" if text else "right", overflow="fold")
    return rows


def _volumes(title: str, volumes: Sequence[Volume], rolls: int, console: Console) -> None:
    rows = _table(title, "service", "a roll", "bytes a roll", "asked for by")
    for one in volumes[:SHOWN]:
        rows.add_row(one.name, one.service, f"{one.count / rolls:.2f}", f"{one.size / rolls:,.0f}", ASKED[one.asked])
    print_table(console, rows)


def _each(size: Size, rolls: int) -> tuple[str, str]:
    return f"{size.raw / rolls:,.0f}", f"{size.compressed / rolls:,.0f}"


def _size(size: Size, rolls: int) -> dict[str, float]:
    return {"raw": round(size.raw / rolls, 1), "compressed": round(size.compressed / rolls, 1)}


def _volume(one: Volume, rolls: int) -> Mapping[str, Any]:
    return {**asdict(one), "bytes_a_roll": round(one.size / rolls, 1)}
