"""The samples of ``/metrics`` pages as rows of the table ``samples``, both in a live game and in a recorded case."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

import orjson
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lab.signals import PROCESS_METRICS
from lab.supervise.rundir import RotatingFile, RunDir

CUMULATIVE = ("counter", "histogram", "summary")
KEPT_SECONDS = 60.0  # scrapes after the onset, and at the end, that are kept; longer than all windows of a query
FILE_BYTES = 16 * 1024 * 1024  # the file is rotated at this size, after about four minutes
_LINE = re.compile(r'([^{ ]+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?) (\S+)')  # a series and its value, no exemplar


@dataclass(frozen=True)
class Scrape:
    """One ``/metrics`` page in the OpenMetrics format; ``at`` in seconds since 1970."""

    at: float
    service: str
    text: str


@dataclass(frozen=True)
class Row:
    """One sample of a scrape.

    Attributes:
        at: in seconds since 1970.
        kind: the type of its metric, such as ``counter``.
        increase: the increase of a counter since the scrape before; ``None`` for a gauge, and in the first scrape.
    """

    at: float
    service: str
    name: str
    kind: str
    labels: dict[str, str]
    value: float
    increase: float | None = None

    def line(self) -> bytes:
        """The row as a line of a file in the directory ``metrics`` of a run dir; NaN and infinity become null."""
        document = {
            "timestamp": datetime.fromtimestamp(self.at, UTC).isoformat(),
            "service": self.service,
            "name": self.name,
            "kind": self.kind,
            "labels": self.labels,
            "value": self.value,
            "increase": self.increase,
        }
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


class Sampler:
    """Converts scrapes, in the order of their time, to rows."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, float]] = {}  # by service: the value of each counter in its last scrape

    def rows(self, scrape: Scrape) -> list[Row]:
        """The rows of a scrape.

        A new counter is taken to have begun at 0, and one that is lower than before to have been reset to 0.

        Raises:
            ValueError: when the page is in another format.
        """
        before = self._before.get(scrape.service)
        counters: dict[str, float] = {}
        rows = []
        for series, kind, value in _lines(scrape.text):
            name, labels = _series(series)
            increase = None
            if kind in CUMULATIVE and not name.endswith("_created"):
                counters[series] = value
                if before is not None:
                    known = before.get(series, 0.0)
                    increase = value - known if value >= known else value
            rows.append(Row(scrape.at, scrape.service, name, kind, labels, value, increase))
        self._before[scrape.service] = counters
        return rows


class SamplesFile:
    """The file of a game's samples for ``dicelab sql``; it replaces those of the last game.

    Write errors, such as a full disk, are ignored: those samples are missing in the table. The score does not need the
    file.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._file: RotatingFile | None = None
        shutil.rmtree(run_dir.metrics, ignore_errors=True)
        with suppress(OSError):
            run_dir.metrics.mkdir(mode=0o700)
            self._file = RotatingFile(run_dir.metrics / "samples.jsonl", FILE_BYTES)

    def write(self, rows: Iterable[Row]) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.write(b"".join(row.line() for row in rows))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def up(at: float, services: Iterable[str], responded: Collection[str]) -> list[Row]:
    """Rows of the metric ``up``, as in Prometheus: 1 for each service that responded at that time, else 0."""
    return [Row(at, service, "up", "gauge", {}, float(service in responded)) for service in services]


def window(
    scrapes: Iterable[Scrape], start: float, end: float, shift: float, with_those_before: bool = False
) -> Iterator[Row]:
    """The rows of a time range, shifted by so many seconds.

    Counters are reset so that they are 0 in the last scrape before the range, and metrics of the processes themselves
    are left out. So neither the rows nor their values reveal when the window was.

    Args:
        with_those_before: whether the rows of that last scrape are included.
    """
    everything = sorted(scrapes, key=lambda one: one.at)
    services = sorted({scrape.service for scrape in everything})
    responded: dict[float, set[str]] = {}  # the services, by time
    for scrape in everything:
        responded.setdefault(scrape.at, set()).add(scrape.service)
    sampler = Sampler()
    grown: dict[tuple[str, str, str], float] = {}  # each counter since the beginning of the window
    for scrape in _with_those_before(everything, start, end):
        given = with_those_before or scrape.at >= start
        for row in sampler.rows(scrape):
            # Most of them grow all the time, so they would tell the time and not the fault.
            if row.name.startswith(PROCESS_METRICS):
                continue
            value = row.value
            if row.kind in CUMULATIVE:
                key = row.service, row.name, str(row.labels)
                value = grown[key] = grown.get(key, 0.0) + (row.increase or 0.0)
            if given:
                yield replace(row, at=row.at + shift, value=value)
    for at, found in responded.items():
        if start <= at < end:
            yield from up(at + shift, services, found)


def recent(scrapes: Iterable[Scrape], onset: float | None, now: float) -> list[Scrape]:
    """The scrapes that a score needs: those until :data:`KEPT_SECONDS` after the onset, and the latest ones."""
    return [
        scrape
        for scrape in scrapes
        if onset is None or scrape.at <= onset + KEPT_SECONDS or scrape.at >= now - KEPT_SECONDS
    ]


def _with_those_before(scrapes: Iterable[Scrape], start: float, end: float) -> list[Scrape]:
    """The scrapes of a time range, preceded by each service's last scrape before it."""
    before: dict[str, Scrape] = {}
    within = []
    for scrape in scrapes:
        if scrape.at < start:
            before[scrape.service] = scrape
        elif scrape.at < end:
            within.append(scrape)
    return [*before.values(), *within]


def _lines(text: str) -> Iterator[tuple[str, str, float]]:
    """The series, type and value of each sample. prometheus_client's parser would take ten times as long."""
    kind = "unknown"
    for line in text.splitlines():
        if line.startswith("#"):
            if line.startswith("# TYPE "):
                kind = line.rpartition(" ")[2]
            continue
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"no sample: {line[:100]}")
        yield found[1], kind, float(found[2])


@lru_cache(maxsize=20_000)
def _series(series: str) -> tuple[str, dict[str, str]]:
    """The name and the labels of a series, without the label ``job``, which recorded cases add for the service."""
    (family,) = text_string_to_metric_families(f"{series} 0\n# EOF\n")  # type: ignore[no-untyped-call]
    (sample,) = family.samples
    return sample.name, {name: value for name, value in sample.labels.items() if name != "job"}
