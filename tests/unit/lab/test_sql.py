"""``dicelab sql``: questions about the files of a run dir."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.cli import main
from lab.paths import DOCS
from lab.supervise.rundir import RotatingFile
from lab.tables import FIELDS, LINES, SAMPLES, SPANS
from tests.support import matrix
from tests.unit.lab.test_signals import PARENT, SPAN, TRACE, export

DOCUMENT = DOCS / "sql.md"
LINE = {
    "timestamp": "2026-01-02T03:04:05.678Z",
    "level": "INFO",
    "message": "Roll completed",
    "logger": "dice-roller",
    "trace_id": TRACE,
    "span_id": SPAN,
    "die_type": "fair",
    "roll_value": 5,
}

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name in ("logs", "traces"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def ask(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the command; returns exit status, stdout and stderr."""

    def run(query: str, *arguments: str) -> tuple[int, str, str]:
        status = main(["sql", "--run-dir", str(run_dir), query, *arguments])
        return status, *capsys.readouterr()

    return run


def write(path: Path, *lines: Any) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))


def test_a_span_and_its_columns(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "traces" / "dice-roller.jsonl", export(endTimeUnixNano="1700000000001500001"))
    status, output, errors = ask(
        "SELECT * EXCLUDE (attributes), attributes['http.response.status_code'] AS http, "
        "attributes['die.type'] AS die, attributes['nosuch'] AS nosuch FROM spans",
        "--json",
    )
    assert (status, errors) == (0, "")
    assert json.loads(output) == [
        {
            "trace_id": TRACE,
            "span_id": SPAN,
            "parent_id": PARENT,
            "service": "dice-roller",
            "name": "GET /roll",
            "kind": "server",
            "status": "error",
            "start": "2023-11-14T22:13:20.000Z",
            "duration_ms": 1.5,
            "start_ns": 1700000000000000001,
            "end_ns": 1700000000001500001,
            "events": ["exception"],
            "http": "503",
            "die": "fair",
            "nosuch": None,
        }
    ]


def test_a_root_span_has_no_parent(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "traces" / "frontend.jsonl", export(parentSpanId=""), export(spanId="0" * 15 + "1"))
    assert ask("SELECT span_id FROM spans WHERE parent_id IS NULL", "--csv")[1] == f"span_id\n{SPAN}\n"


def test_a_line_and_its_columns(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "dice-roller.jsonl", LINE | {"usage": True, "duration_ms": 1.25, "more": {"a": [1]}})
    _, output, errors = ask("SELECT * EXCLUDE fields, fields['more'] AS more FROM lines", "--json")
    (row,) = json.loads(output)
    assert errors == ""
    assert {name: value for name, value in row.items() if value is not None} == {
        **{name: value for name, value in LINE.items() if name != "logger"},
        "service": "dice-roller",
        "usage": True,
        "duration_ms": 1.25,
        "more": '{"a": [1]}',
    }


def test_a_field_of_another_type_is_null_and_stays_among_the_fields(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "dice-roller.jsonl", LINE | {"roll_value": "many", "timestamp": "yesterday"})
    _, output, _ = ask("SELECT roll_value, timestamp, fields['roll_value'] AS said FROM lines", "--json")
    assert json.loads(output) == [{"roll_value": None, "timestamp": None, "said": "many"}]


SAMPLE = {
    "timestamp": "2026-01-02T03:04:05.500000+00:00",
    "service": "dice-roller",
    "name": "dice_rolls_total",
    "kind": "counter",
    "labels": {"die_type": "fair"},
    "value": 7.0,
    "increase": 2.0,
}


def test_a_sample_and_its_columns(run_dir: Path, ask: Ask) -> None:
    (run_dir / "metrics").mkdir()
    write(run_dir / "metrics" / "samples.jsonl", SAMPLE, SAMPLE | {"value": None, "increase": None}, {"name": "up"})
    _, output, errors = ask("SELECT * EXCLUDE labels, labels['die_type'] AS die FROM samples ORDER BY value", "--json")
    plain = {name: value for name, value in SAMPLE.items() if name != "labels"}
    plain |= {"timestamp": "2026-01-02T03:04:05.500Z", "die": "fair"}
    assert json.loads(output) == [plain, plain | {"value": None, "increase": None}]
    assert errors == "dicelab: left out: metrics/samples.jsonl: 1 line is no sample\n"


def test_samples_are_only_loaded_for_a_query_about_them(run_dir: Path, ask: Ask) -> None:
    (run_dir / "metrics").mkdir()
    write(run_dir / "metrics" / "samples.jsonl", "broken")
    assert ask("SELECT count(*) FROM lines", "--csv")[2] == ""
    assert "1 line is no sample" in ask("SELECT count(*) FROM Samples", "--csv")[2]


def test_a_table_for_people(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "frontend.jsonl", LINE | {"username": "a\x1b[31m\nb", "roll_value": 10}, LINE)
    status, output, _ = ask("SELECT username, roll_value, usage, 1 / 3 AS third FROM lines ORDER BY roll_value DESC")
    assert status == 0
    assert [line.split() for line in output.splitlines()] == [
        ["username", "roll_value", "usage", "third"],
        [r"a\x1b[31m\nb", "10", "0.333333"],
        ["5", "0.333333"],
        ["(2", "rows)"],
    ]
    assert output.splitlines()[1].index("10") == output.splitlines()[2].index("5") - 1  # numbers are right-aligned


@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_number_is_split_in_a_narrow_terminal(ask: Ask, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    for name, value in (("COLUMNS", columns), ("FORCE_COLOR", "1"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    numbers = [str(10**9 + number) for number in range(6)]
    _, output, _ = ask(f"SELECT 'some words to wrap' AS words, {', '.join(numbers)}")
    assert all(output.count(number) == 2 for number in numbers)  # the name of its column, and the value


def test_a_piped_table_has_one_line_for_each_row_however_long(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "frontend.jsonl", LINE | {"username": "long name " * 50})
    assert len(ask("SELECT username, fields FROM lines")[1].splitlines()) == 3


def test_a_table_for_people_ends_after_a_thousand_rows(ask: Ask) -> None:
    _, output, _ = ask("SELECT * FROM range(1200)")
    assert len(output.splitlines()) == 1002
    assert output.splitlines()[-1] == "(1,200 rows, the first 1000 are shown; --json and --csv print all)"
    assert len(ask("SELECT * FROM range(1200)", "--csv")[1].splitlines()) == 1201


def test_csv_quotes_values_where_necessary(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "frontend.jsonl", LINE | {"username": 'a,"b"\nc'})
    _, output, _ = ask("SELECT username, usage, roll_value FROM lines", "--csv")
    assert list(csv.reader(io.StringIO(output))) == [["username", "usage", "roll_value"], ['a,"b"\nc', "", "5"]]


def test_values_that_json_cannot_express(ask: Ask) -> None:
    _, output, _ = ask(
        "SELECT 1 / 0 AS inf, 2.5::DECIMAL AS dec, date '2026-01-02' AS day, [1, NULL] AS list", "--json"
    )
    assert json.loads(output) == [{"inf": None, "dec": 2.5, "day": "2026-01-02", "list": [1, None]}]


def test_no_rows(ask: Ask) -> None:
    assert ask("SELECT * FROM spans", "--json") == (0, "[]\n", "")
    assert ask("SELECT level FROM lines", "--csv") == (0, "level\n", "")
    assert ask("SELECT level FROM lines")[1].split() == ["level", "(0", "rows)"]


def test_rotated_files_are_read_and_others_are_not(run_dir: Path, ask: Ask) -> None:
    for number, name in enumerate(("frontend.jsonl", "frontend.jsonl.1", "frontend.jsonl.12", "frontend.stderr")):
        write(run_dir / "logs" / name, LINE | {"roll_value": number})
    write(run_dir / "logs" / "frontend.jsonl.bak", LINE)
    write(run_dir / "traces" / "frontend.jsonl.1", export())
    assert ask("SELECT list(roll_value ORDER BY roll_value) AS v FROM lines", "--csv")[1] == 'v\n"[0, 1, 2]"\n'
    assert ask("SELECT count(*) AS n FROM spans", "--csv")[1] == "n\n1\n"


BROKEN_SPANS = (
    "[]",
    '"resourceSpans"',
    '{"resourceSpans": 5}',
    export(startTimeUnixNano="never"),
    export(endTimeUnixNano=str(1 << 70)),
    export(endTimeUnixNano="1"),
    export(traceId="no base64"),
    export(kind="SPAN_KIND_OTHER"),
    export(status={"code": 99}),
    export(attributes=[{"key": "x"}]),
    "[" * 100_000,
)


def test_broken_lines_are_left_out_and_counted(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "traces" / "frontend.jsonl", *BROKEN_SPANS, export())
    write(run_dir / "logs" / "frontend.jsonl", "Traceback (most recent call last):", "5", "", '{"a":', LINE)
    with open(run_dir / "logs" / "frontend.jsonl", "ab") as file:
        file.write(b'\xff\xfe{"level": "INFO"}\n\0\0\0\n{"half": ')
    status, output, errors = ask("SELECT (SELECT count(*) FROM spans) AS s, (SELECT count(*) FROM lines) AS l", "--csv")
    assert (status, output) == (0, "s,l\n1,1\n")
    assert errors.splitlines() == [
        f"dicelab: left out: traces/frontend.jsonl: {len(BROKEN_SPANS)} lines: each is no OTLP JSON",
        "dicelab: left out: logs/frontend.jsonl: 5 lines: each is no JSON object",
    ]


def test_unusual_characters_are_printed(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "frontend.jsonl", LINE | {"username": "a\0b"}, '{"username": "x\\ud800y"}')
    status, output, errors = ask("SELECT username FROM lines ORDER BY 1", "--json")
    assert (status, errors) == (0, "")
    assert [row["username"] for row in json.loads(output)] == ["a\0b", "x?y"]


def test_a_directory_with_the_name_of_a_file_is_left_out(run_dir: Path, ask: Ask) -> None:
    (run_dir / "logs" / "frontend.jsonl").mkdir()
    status, output, errors = ask("SELECT count(*) AS n FROM lines", "--csv")
    assert (status, output) == (0, "n\n0\n")
    assert errors == "dicelab: left out: logs/frontend.jsonl: Is a directory\n"


def test_spans_that_went_to_an_engine_are_mentioned(run_dir: Path, ask: Ask) -> None:
    (run_dir / "state.json").write_text(json.dumps({"engines": [{"name": "tempo", "url": ""}]}))
    assert "sends its spans to an engine" in ask("SELECT 1")[2]


def test_files_may_be_written_and_rotated_meanwhile(run_dir: Path, ask: Ask) -> None:
    """Each answer contains every line that was written before the question, once."""
    file = RotatingFile(run_dir / "logs" / "frontend.jsonl", max_bytes=5_000, backups=10_000)
    written = 0
    stop = threading.Event()

    def keep_writing() -> None:
        nonlocal written
        while not stop.is_set():
            file.write(json.dumps(LINE | {"roll_value": written}).encode() + b"\n")
            written += 1
            stop.wait(0.0002)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(8):
            before = written
            status, output, errors = ask("SELECT count(*) AS n, count(DISTINCT roll_value) AS d FROM lines", "--json")
            (row,) = json.loads(output)
            assert (status, errors) == (0, "")
            assert before <= row["n"] == row["d"] <= written
    finally:
        stop.set()
        writer.join()
        file.close()
    assert len(list((run_dir / "logs").iterdir())) > 3


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("INSERT INTO lines SELECT * FROM lines", "only be read"),
        ("DELETE FROM spans", "only be read"),
        ("CREATE TABLE x AS SELECT 1", "only be read"),
        ("COPY lines TO 'FILE'", "only be read"),
        ("EXPORT DATABASE 'FILE'", "only be read"),
        ("ATTACH 'FILE' AS x", "only be read"),
        ("INSTALL httpfs", "only be read"),
        ("SET enable_external_access = true", "only be read"),
        ("PRAGMA threads = 2", "only be read"),
        ("EXPLAIN ANALYZE DELETE FROM spans", "only be read"),
        ("SELECT 1; SELECT 2", "only be read"),
        ("", "only be read"),
        ("/* nothing */", "only be read"),
        ("SELECT * FROM read_text('SECRET')", "file system operations are disabled"),
        ("SELECT * FROM read_csv('SECRET')", "file system operations are disabled"),
        ("SELECT * FROM glob('SECRET*')", "file system operations are disabled"),
        ("SELECT * FROM 'SECRET'", "file system operations are disabled"),
        ("FROM query('DELETE FROM spans')", "single SELECT"),
        ("SELECT * FROM columns_of_a_python_variable", "does not exist"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nosuch FROM spans", 'column "nosuch" not found'),
        ("SELECT 'x'::INT", "Could not convert"),
        ("SELECT $1", "parameters"),
        ("SELECT '\udcff'", "not a text in UTF-8"),  # the byte 0xff on the command line
        ("SELECT list(range) FROM range(100000000)", "Out of Memory"),
    ],
)
def test_other_statements_are_refused_in_one_line(run_dir: Path, ask: Ask, query: str, text: str) -> None:
    columns_of_a_python_variable = [1]  # a name that DuckDB must not find
    secret = run_dir / "secret.csv"
    secret.write_text("password\n")
    before = sorted(run_dir.rglob("*"))
    status, output, errors = ask(query.replace("SECRET", str(secret)).replace("FILE", str(run_dir / "out")))
    assert (status, output) == (2, "")
    assert errors.startswith("dicelab: ")
    assert errors.count("\n") == 1
    assert text in errors
    assert "password" not in errors
    assert len(errors) < 250
    assert sorted(run_dir.rglob("*")) == before
    assert columns_of_a_python_variable == [1]


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nosuch FROM spans", "SELECT * FROM nosuch", "DELETE FROM lines"])
def test_a_wrong_query_is_refused_before_the_files_are_loaded(run_dir: Path, ask: Ask, query: str) -> None:
    write(run_dir / "logs" / "frontend.jsonl", "broken")  # loading it would print a note
    status, output, errors = ask(query)
    assert (status, output) == (2, "")
    assert "left out" not in errors


def test_json_and_csv_exclude_each_other(ask: Ask) -> None:
    assert ask("SELECT 1", "--json", "--csv") == (2, "", "dicelab: give --json or --csv, not both\n")


def test_no_run_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "SELECT 1", "--run-dir", str(tmp_path / "nosuch")]) == 2
    assert (
        capsys.readouterr().err == f"dicelab: no logs and no traces in {tmp_path}/nosuch; dicelab up makes them there\n"
    )
    assert not (tmp_path / "nosuch").exists()


def test_every_documented_log_field_is_a_column() -> None:
    types = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
    for _, name, kind in matrix.LOG_FIELDS:
        assert FIELDS[name] == types[kind], name


@pytest.mark.parametrize(("table", "columns"), [("spans", SPANS), ("lines", LINES), ("samples", SAMPLES)])
def test_the_document_lists_exactly_the_columns(ask: Ask, table: str, columns: Any) -> None:
    section = DOCUMENT.read_text().split(f"## `{table}`")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE)
    described = json.loads(ask(f"DESCRIBE {table}", "--json")[1])
    assert documented == [(row["column_name"], row["column_type"]) for row in described]
    assert [column.name for column in columns] == [name for name, _ in documented]


def test_the_queries_of_the_document_run(run_dir: Path, ask: Ask) -> None:
    write(run_dir / "logs" / "dice-roller.jsonl", LINE)
    write(run_dir / "traces" / "dice-roller.jsonl", export(), export(spanId=PARENT, parentSpanId="", kind=3))
    (run_dir / "metrics").mkdir()
    write(run_dir / "metrics" / "samples.jsonl", SAMPLE)
    increase, slowest, edges = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert ask(increase, "--csv")[1].splitlines()[1:] == ["2026-01-02T03:04:00.000Z,2.0"]
    assert ask(slowest, "--csv")[1].splitlines()[1:] == ["2026-01-02T03:04:05.678Z,dice-roller,INFO,Roll completed"]
    assert ask(edges, "--csv")[1].splitlines()[1:] == ["dice-roller,dice-roller,1"]
