"""The spans, log lines and samples of a run dir as SQL tables: ``spans``, ``lines`` and ``samples``.

A table holds the content of the files at the time it was loaded. It is in memory and read-only::

    with Tables.of(Path(".dicelab")) as tables:
        result = tables.query("SELECT count(*) FROM spans WHERE status = 'error'")

``docs/sql.md`` documents the columns.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import duckdb
import orjson

from lab import InputError
from lab.rotated import open_files, whole_lines
from lab.signals import SPAN_KINDS, STATUS_CODES, Line, Span, parse_line, parse_spans
from lab.supervise.rundir import RunDir

MEMORY = "1GB"  # for the tables and a query; DuckDB spills the rest to the temporary directory
MAX_DISK = "1GB"
MAX_MESSAGE = 200  # characters of an error that are shown


class Column(NamedTuple):
    """A column: its name, its SQL type, and the expression that computes it from a loaded row."""

    name: str
    type: str
    source: str = ""


SPANS = (
    Column("trace_id", "VARCHAR"),
    Column("span_id", "VARCHAR"),
    Column("parent_id", "VARCHAR"),
    Column("service", "VARCHAR"),
    Column("name", "VARCHAR"),
    Column("kind", "VARCHAR"),
    Column("status", "VARCHAR"),
    Column("start", "TIMESTAMP", "make_timestamp(start_ns // 1000)"),
    Column("duration_ms", "DOUBLE", "(end_ns - start_ns) / 1e6"),
    Column("start_ns", "BIGINT"),
    Column("end_ns", "BIGINT"),
    Column("attributes", "MAP(VARCHAR, VARCHAR)"),
    Column("events", "VARCHAR[]"),
)
FIELDS = {
    "die_type": "VARCHAR",
    "roll_value": "BIGINT",
    "backend_status": "BIGINT",
    "backend_url": "VARCHAR",
    "die_identifier": "VARCHAR",
    "die_found": "BOOLEAN",
    "async_batch_size": "BIGINT",
    "async_roll_index": "BIGINT",
    "async_total_result": "BIGINT",
    "db_query_type": "VARCHAR",
    "db_query_duration_ms": "DOUBLE",
    "db_result_count": "BIGINT",
    "usage": "BOOLEAN",
    "event_type": "VARCHAR",
    "session_id": "VARCHAR",
    "username": "VARCHAR",
    "http_method": "VARCHAR",
    "http_target": "VARCHAR",
    "http_status": "BIGINT",
    "duration_ms": "DOUBLE",
}
LINES = (
    Column("timestamp", "TIMESTAMP", "TRY_CAST(fields['timestamp'] AS TIMESTAMP)"),
    Column("level", "VARCHAR"),
    Column("service", "VARCHAR"),
    Column("message", "VARCHAR"),
    Column("trace_id", "VARCHAR"),
    Column("span_id", "VARCHAR"),
    *(Column(name, type, f"TRY_CAST(fields['{name}'] AS {type})") for name, type in FIELDS.items()),
    Column("fields", "MAP(VARCHAR, VARCHAR)"),
)
SAMPLES = (
    Column("timestamp", "TIMESTAMP"),
    Column("service", "VARCHAR"),
    Column("name", "VARCHAR"),
    Column("kind", "VARCHAR"),
    Column("labels", "MAP(VARCHAR, VARCHAR)"),
    Column("value", "DOUBLE"),
    Column("increase", "DOUBLE"),
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The rows of a query; ``columns`` are their names, in order."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Tables:
    """The tables of one run dir.

    Attributes:
        left_out: what is missing from the tables and why, a sentence each.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, left_out: list[str], close: Callable[[], None]) -> None:
        self._database = database
        self._close = close
        self.left_out = left_out

    @classmethod
    def of(cls, run_dir: Path, samples: bool = True) -> Self:
        """Load the files of a run dir, which a lab may be writing to.

        Args:
            samples: whether the table of samples is loaded, which takes the longest; else it is empty.

        Raises:
            InputError: when there is no run dir, or it cannot be read.
        """
        directory = RunDir(run_dir)
        if not directory.logs.is_dir() and not directory.traces.is_dir():
            raise InputError(f"no logs and no traces in {directory.path}; dicelab up makes them there")
        with ExitStack() as stack:
            try:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicelab-sql-")))
                database = stack.enter_context(_connect(scratch))
                left_out: list[str] = []
                _load(database, "spans", SPANS, scratch, _span_rows, directory.traces, left_out)
                _load(database, "lines", LINES, scratch, _line_rows, directory.logs, left_out)
                metrics = directory.metrics if samples else None
                _load(database, "samples", SAMPLES, scratch, _sample_rows, metrics, left_out)
            except OSError as error:
                raise InputError(f"{error.filename or directory.path}: {error.strerror}") from None
            except duckdb.Error as error:
                raise InputError(f"the tables cannot be made: {_message(error)}") from None
            engines = [engine["name"] for engine in (directory.state() or {}).get("engines", [])]
            if "tempo" in engines or "otel-collector" in engines:
                left_out.append("spans: this lab sends its spans to an engine; the table holds those in files only")
            _lock(database)
            return cls(database, left_out, stack.pop_all().close)

    def query(self, sql: str) -> Result:
        """The result of one SELECT statement (or DESCRIBE, SHOW, SUMMARIZE, VALUES).

        Raises:
            InputError: when it is another statement, or DuckDB refuses it; the text is DuckDB's, shortened.
        """
        statement = _parse(self._database, sql)
        try:
            result = self._database.execute(statement)
            columns = tuple(str(column[0]) for column in result.description or ())
            return Result(columns, result.fetchall())
        # ValueError, OverflowError: a value for which Python has no type.
        except (duckdb.Error, ValueError, OverflowError) as error:
            raise InputError(_message(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def mentions_samples(query: str) -> bool:
    """Whether a query may read the table of samples."""
    return "samples" in query.lower()


def check(sql: str) -> None:
    """Check a query's syntax and its names of tables and columns, without loading a file or evaluating the query.

    Raises:
        InputError: when :meth:`Tables.query` would refuse it.
    """
    with tempfile.TemporaryDirectory(prefix="dicelab-sql-") as scratch, _connect(Path(scratch)) as database:
        for table, columns in (("spans", SPANS), ("lines", LINES), ("samples", SAMPLES)):
            database.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {type}' for name, type, _ in columns)})")
        _lock(database)
        statement = _parse(database, sql)
        try:
            database.sql(statement)  # plans a query, and evaluates it when its result is asked for
        except duckdb.Error as error:
            raise InputError(_message(error)) from None


def _parse(database: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    try:
        sql.encode()
        statements = database.extract_statements(sql)
    except UnicodeEncodeError:  # a lone surrogate, by which Python represents a byte that is not UTF-8
        raise InputError("the query is not a text in UTF-8") from None
    except duckdb.Error as error:
        raise InputError(_message(error)) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise InputError("the tables can only be read: give one SELECT statement")
    return statements[0]


def _connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        ":memory:",
        config={
            "threads": 2,
            "memory_limit": MEMORY,
            "temp_directory": str(scratch),
            "max_temp_directory_size": MAX_DISK,
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "python_enable_replacements": False,
        },
    )


def _lock(database: duckdb.DuckDBPyConnection) -> None:
    """From here on no statement can access a file, or change this setting."""
    for setting in ("enable_external_access = false", "lock_configuration = true"):
        database.execute(f"SET {setting}")


def _message(error: Exception) -> str:
    """DuckDB's own message in one line, without the excerpt of the query."""
    said = str(error).partition("\nLINE ")[0].partition("\nPossible solutions")[0]
    return " ".join(said.split())[:MAX_MESSAGE]


# --- loading ---


def _load(
    database: duckdb.DuckDBPyConnection,
    table: str,
    columns: Iterable[Column],
    scratch: Path,
    rows_of: Callable[[str, str], Iterable[Row]],
    directory: Path | None,
    left_out: list[str],
) -> None:
    """Load the files of a directory into a table; ``rows_of`` converts a line and its file's name to rows."""
    file = scratch / "rows.jsonl"
    broken: Counter[str] = Counter()
    with ExitStack() as stack, open(file, "wb") as rows:
        for name, opened in open_files(directory, stack, left_out) if directory else ():
            for line in whole_lines(opened):
                try:
                    found = [_encoded(row) for row in rows_of(line.decode(), name)]
                except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                    broken[name] += 1
                    continue
                rows.writelines(found)
    plain = ", ".join(f"{column.name}: '{column.type}'" for column in columns if not column.source)
    made = ", ".join(f"{column.source or column.name} AS {column.name}" for column in columns)
    database.execute(
        f"CREATE TABLE {table} AS SELECT {made} FROM read_json($file, format = 'newline_delimited', "
        f"maximum_object_size = 134217728, columns = {{{plain}}})",
        {"file": str(file)},
    )
    file.unlink()
    what = {"spans": "is no OTLP JSON", "lines": "is no JSON object", "samples": "is no sample"}[table]
    for name, count in broken.items():
        lines = f"1 line {what}" if count == 1 else f"{count} lines: each {what}"
        left_out.append(f"{directory.name if directory else ''}/{name}: {lines}")


def _encoded(row: Row) -> bytes:
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot encode
        return json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"


def _span_rows(line: str, file: str) -> Iterator[Row]:
    return map(_span_row, parse_spans([line]))


def _span_row(span: Span) -> Row:
    if not 0 <= span.start <= span.end < 1 << 63 or (len(span.trace_id), len(span.span_id)) != (32, 16):
        raise ValueError("not the times or ids of a span")
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id or None,
        "service": str(span.service),
        "name": str(span.name),
        "kind": SPAN_KINDS[span.kind],
        "status": STATUS_CODES[span.status],
        "start_ns": span.start,
        "end_ns": span.end,
        "attributes": _texts(span.attributes),
        "events": [str(event) for event in span.events],
    }


def _line_rows(text: str, file: str) -> Iterator[Row]:
    line: Line = parse_line(text)
    yield {
        "level": line.level,
        "service": line.service or file.partition(".")[0],
        "message": line.message,
        "trace_id": line.trace_id or None,
        "span_id": _text(line.fields.get("span_id")) or None,
        "fields": _texts(line.fields),
    }


def _sample_rows(text: str, file: str) -> Iterator[Row]:
    given = json.loads(text)
    at = datetime.fromisoformat(given["timestamp"]).astimezone(UTC)
    yield {
        **{column.name: given[column.name] for column in SAMPLES},
        "timestamp": at.replace(tzinfo=None).isoformat(),
        "labels": _texts(given["labels"]),
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str | None:
    """A value as SQL sees it: a string as it is, everything else as JSON writes it."""
    if value is None or isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False)
