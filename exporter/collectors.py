"""The collectors behind ``/metrics``: the dice table of PostgreSQL, and the run dir.

``prometheus_client`` calls a collector's ``collect`` at each scrape. Collectors keep no values between scrapes, so none
is out of date: while a source is unavailable its ``..._up`` is 0, and its other metrics are absent.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_DICE = 100  # limits the number of series: anyone who can write to the table can add names
CONNECT_TIMEOUT, QUERY_TIMEOUT = 2, 1.5  # seconds; together below the 4 s that Prometheus gives a scrape

# The directories of each signal in the run dir: the files that the lab writes itself, and the engine's data.
SIGNALS = {
    "logs": ("logs", "engines/loki"),
    "metrics": ("engines/prometheus",),
    "traces": ("traces", "engines/tempo"),
}
# Where new lines and new spans are written first: the lab's own files, and Tempo's write-ahead log.
NEWEST = {"logs": ("logs",), "traces": ("traces", "engines/tempo/live-store/traces")}

log = logging.getLogger(__name__)


class Source(Collector):
    """A source of metrics that may be unavailable.

    Attributes:
        name: the name of the source in its metric ``dicelab_<name>_up``.
        up: the help text of that metric.
        errors: the exceptions that reading raises while the source is unavailable.
    """

    name: str
    up: str
    errors: tuple[type[Exception], ...]
    _unavailable = False

    @abstractmethod
    def read(self) -> Iterator[Metric]:
        """The current metrics of the source. Blocks."""

    def collect(self) -> Iterator[Metric]:
        families: list[Metric] = []
        try:
            families += self.read()  # all of it, or nothing
        except self.errors as error:
            if not self._unavailable:
                log.warning("The %s cannot be read: %s", self.name, str(error).strip().partition("\n")[0])
            self._unavailable = True
        else:
            self._unavailable = False
        yield GaugeMetricFamily(f"dicelab_{self.name}_up", self.up, value=not self._unavailable)
        yield from families


class DiceTable(Source):
    """The dice table, read by one query over a new connection: a pool would hide that nobody can connect."""

    name = "database"
    up = "1 if the exporter could read the dice table, else 0."
    errors = (psycopg2.Error,)
    QUERY = (
        "SELECT identifier, cardinality(faces), error_rate, count(*) OVER () FROM dice"
        f" ORDER BY identifier LIMIT {MAX_DICE}"
    )

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> Iterator[Metric]:
        milliseconds = int(QUERY_TIMEOUT * 1000)
        connection = psycopg2.connect(
            self._url,
            connect_timeout=CONNECT_TIMEOUT,
            tcp_user_timeout=milliseconds,
            options=f"-c statement_timeout={milliseconds}",
            application_name="exporter",
        )
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(self.QUERY)
            yield from self.families(cursor.fetchall())

    @staticmethod
    def families(rows: Sequence[tuple[str, int, float, int]]) -> Iterator[Metric]:
        """The metrics of the query's rows: name, number of faces, error rate, number of dice."""
        yield GaugeMetricFamily("dicelab_dice", "Dice in the table.", value=rows[0][3] if rows else 0)
        faces = GaugeMetricFamily("dicelab_die_faces", "Faces of a die.", labels=["die_type"])
        errors = GaugeMetricFamily(
            "dicelab_die_error_rate", "Share of its rolls that a die fails by design.", labels=["die_type"]
        )
        for name, count, error_rate, _ in rows:
            faces.add_metric([name], count)
            errors.add_metric([name], error_rate)
        yield from (faces, errors)


class RunDirectory(Source):
    """The files of a running lab: their size, the newest, restarts, and the running experiment."""

    name = "run_dir"
    up = "1 if the exporter could read the run dir, else 0."
    errors = (OSError, ValueError, KeyError, TypeError)  # the last three: an unexpected state file

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[Metric]:
        os.scandir(self._path).close()  # raises where there is no run dir; os.walk below would ignore that
        size = GaugeMetricFamily("dicelab_run_dir_bytes", "Size of a signal's files.", labels=["signal"])
        for signal, directories in SIGNALS.items():
            size.add_metric([signal], sum(file.st_size for file in self._files(directories)))
        # The time, not the age, which would be out of date when it is read. In PromQL the age is time() minus this.
        newest = GaugeMetricFamily(
            "dicelab_newest_timestamp_seconds", "When a line or a span was last written.", labels=["signal"]
        )
        for signal, directories in NEWEST.items():
            if times := [file.st_mtime for file in self._files(directories)]:
                newest.add_metric([signal], max(times))
        yield from (size, newest, self._restarts(), self._experiment())

    def _restarts(self) -> Metric:
        restarts = CounterMetricFamily(
            "dicelab_restarts", "How often the supervisor has started a part again.", labels=["part"]
        )
        try:
            state = json.loads((self._path / "state.json").read_text())
        except FileNotFoundError:  # the lab is still starting
            return restarts
        for part in (*state["services"], *state.get("engines", []), {"name": "postgres", **state.get("postgres", {})}):
            if "restarts" in part:
                restarts.add_metric([part["name"]], part["restarts"])
        return restarts

    def _experiment(self) -> Metric:
        running = GaugeMetricFamily(
            "dicelab_experiment_running", "1 while dicelab chaos runs this experiment.", labels=["experiment"]
        )
        with suppress(FileNotFoundError), open(self._path / "experiment") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # the experiment holds the lock; after its end the file is unlocked
                if name := file.read(100):  # empty for a moment after it was locked
                    running.add_metric([name], 1)
        return running

    def _files(self, directories: tuple[str, ...]) -> Iterator[os.stat_result]:
        for directory in directories:
            for parent, _, names in os.walk(self._path / directory):
                for name in names:
                    with suppress(FileNotFoundError):  # rotated or compacted in the meantime
                        yield os.lstat(os.path.join(parent, name))
