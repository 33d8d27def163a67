"""A process that keeps the run dir's traces and logs in DuckDB tables and answers questions about them.

``python -m frontend.explorer.index.process RUN_DIR WORK_DIR`` reads questions from stdin and writes answers to stdout,
each as one line of JSON: ``{"ask": "trace", "trace_id": "..."}`` is answered ``{"spans": [...]}``. It only reads the
run dir. Temporary files are in the work dir, which it removes at its end. Between questions it continues to read:
appended lines first, then older lines backwards, newest first. When a file is deleted, so are its rows. The process
ends when stdin does, or after a while without questions.

It is a separate process so that parsing and queries do not block the page's interpreter, and it has a low priority so
that it gets only CPU time that the services do not use.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson

from frontend.explorer.index.sql import EDGES, HEAT, INSERT_LOGS, INSERT_SPANS, LOGS, SEARCH, TABLES, TRACE, VOLUME

CHUNK = 2 * 1024 * 1024  # bytes read at a time, which a question may have to wait for
FIRST_CHUNK = 512 * 1024  # of each file, before the first answer
MAX_LINE = 64 * 1024 * 1024  # a longer line was not written by the lab
HEAD = 256  # bytes that identify a file after its inode was reused
POLL = 0.25  # seconds between two checks of the files
IDLE = 60.0  # seconds without a question after which it ends
MEMORY = "256MB"
NICENESS = 10
COLUMNS = ("level", "service", "trace_id", "span_id")  # of lines, beside their other fields
FIELD = re.compile(r"[\w.]{1,100}")  # names of fields that can be filtered by
FILE_NAME = re.compile(r".+\.jsonl(?:\.(\d+))?$")


@dataclass
class File:
    """A file of lines and its part that is in the tables: the bytes from ``low`` to ``high``."""

    id: int
    path: Path
    kind: str  # traces or logs
    generation: int  # 0 is the active file, 1 and above are rotated ones
    head: bytes
    low: int = 0
    high: int = 0


class Index:
    """The tables, and how far the files of ``run_dir`` have been read into them."""

    def __init__(self, run_dir: Path, work_dir: Path) -> None:
        self._run_dir = run_dir
        self._chunk = work_dir / "chunk"
        self._files: dict[int, File] = {}  # by inode, which survives a rename
        self._last_id = 0
        self._db = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": MEMORY,
                "temp_directory": str(work_dir),
                "autoload_known_extensions": False,
                "autoinstall_known_extensions": False,
                "preserve_insertion_order": False,
            },
        )
        self._db.execute("ATTACH ':memory:' AS tables (COMPRESS); USE tables")
        self._db.execute(TABLES)

    def scan(self) -> None:
        """Find new and renamed files, drop deleted ones, read appended lines."""
        seen = set()
        for kind in ("traces", "logs"):
            try:
                entries = list(os.scandir(self._run_dir / kind))
            except OSError:
                continue
            for entry in entries:
                match = FILE_NAME.match(entry.name)
                if match is None:
                    continue
                try:
                    status = entry.stat()
                    with open(entry.path, "rb") as opened:
                        head = opened.read(HEAD)
                except OSError:  # renamed or removed meanwhile; the next check finds it
                    continue
                inode = entry.inode()
                known = self._files.get(inode)
                if known is not None and (status.st_size < known.high or not head.startswith(known.head)):
                    self._forget(inode)  # another file with the reused inode of a deleted one
                    known = None
                if known is None:
                    self._last_id += 1
                    known = self._files[inode] = File(self._last_id, Path(entry.path), kind, 0, head)
                    known.low = known.high = _end_of_last_line(known.path, status.st_size)
                    if not match[1]:
                        self._read_back(known, FIRST_CHUNK)
                known.path, known.generation, known.head = Path(entry.path), int(match[1] or 0), head
                seen.add(inode)
                if status.st_size > known.high:
                    self._read_on(known)
        for inode in self._files.keys() - seen:
            self._forget(inode)

    def _forget(self, inode: int) -> None:
        file = self._files.pop(inode)
        self._db.execute(f"DELETE FROM {'spans' if file.kind == 'traces' else 'logs'} WHERE file = ?", [file.id])

    def _read_on(self, file: File) -> None:
        """Read appended lines, complete ones only: the last one may be half-written."""
        size = CHUNK
        while True:
            data = _read(file.path, file.high, size)
            end = data.rfind(b"\n") + 1
            if end or len(data) < size or size > MAX_LINE:
                break
            size *= 2
        if end:
            self._insert(file, data[:end])
            file.high += end
        elif size > MAX_LINE:
            file.high += len(data)

    @property
    def behind(self) -> int:
        """Bytes of older lines that are still to be read."""
        return sum(file.low for file in self._files.values())

    def read_back(self) -> None:
        """Backfill one chunk: active files first, then rotated ones; traces before logs."""
        unread = [file for file in self._files.values() if file.low]
        if unread:
            self._read_back(min(unread, key=lambda file: (file.generation, file.kind != "traces", -file.low)), CHUNK)

    def _read_back(self, file: File, size: int) -> None:
        while True:
            start = max(0, file.low - size)
            data = _read(file.path, start, file.low - start)
            # The first line is complete only at the beginning of the file.
            begin = data.find(b"\n") + 1 if start else 0
            if not start or begin < len(data) or size > MAX_LINE:
                break
            size *= 2
        if begin < len(data):
            self._insert(file, data[begin:])
            file.low = start + begin
        else:
            file.low = start

    def _insert(self, file: File, lines: bytes) -> None:
        self._chunk.write_bytes(lines)
        values: dict[str, Any] = {"chunk": str(self._chunk), "file": file.id}
        if file.kind == "logs":
            values["service"] = file.path.name.partition(".")[0]
        self._db.execute(INSERT_SPANS if file.kind == "traces" else INSERT_LOGS, values)

    # --- questions ---

    def trace(self, trace_id: str, limit: int) -> dict[str, Any]:
        return {"spans": self._rows(TRACE, trace_id=trace_id, limit=limit), "behind": self.behind}

    def search(self, **query: Any) -> dict[str, Any]:
        return {"traces": self._rows(SEARCH, **query), "behind": self.behind}

    def heat(self, **query: Any) -> dict[str, Any]:
        return {"cells": self._rows(HEAT, **query), "behind": self.behind}

    def edges(self, **query: Any) -> dict[str, Any]:
        return {"edges": self._rows(EDGES, **query), "behind": self.behind}

    def logs(self, filters: list[tuple[str, str, bool]], **query: Any) -> dict[str, Any]:
        return {"lines": self._filtered(LOGS, filters, query), "behind": self.behind}

    def volume(self, filters: list[tuple[str, str, bool]], **query: Any) -> dict[str, Any]:
        """Lines by level in steps of ``step`` milliseconds."""
        return {"volume": self._filtered(VOLUME, filters, query), "behind": self.behind}

    def _filtered(self, sql: str, filters: list[tuple[str, str, bool]], query: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of log lines. A filter is a field, its value, and whether lines with that value are left out."""
        conditions = ""
        for place, (name, value, exclude) in enumerate(filters):
            if not FIELD.fullmatch(name):
                continue
            field = name if name in COLUMNS else f"""json_extract_string(TRY_CAST(line AS JSON), '$."{name}"')"""
            conditions += f" AND {field} IS {'' if exclude else 'NOT '}DISTINCT FROM $filter{place}"
            query[f"filter{place}"] = value
        return self._rows(sql.format(filters=conditions), **query)

    def _rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        result = self._db.execute(sql, values)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _read(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _end_of_last_line(path: Path, size: int) -> int:
    """The end of the last complete line; 0 if there is none."""
    start = max(0, size - CHUNK)
    return start + _read(path, start, size - start).rfind(b"\n") + 1


def serve(run_dir: Path, work_dir: Path) -> None:
    """Answer questions until stdin ends or no question has come for a while."""
    try:
        index = Index(run_dir, work_dir)
        questions: dict[str, Callable[..., dict[str, Any]]] = {
            "trace": index.trace,
            "search": index.search,
            "logs": index.logs,
            "volume": index.volume,
            "heat": index.heat,
            "edges": index.edges,
        }
        asked = time.monotonic()
        scanned = 0.0
        while time.monotonic() - asked < IDLE:
            waiting, _, _ = select.select([0], [], [], 0 if index.behind else POLL)
            if waiting:
                line = sys.stdin.buffer.readline()
                if not line:
                    return
                question = orjson.loads(line)
                try:
                    index.scan()
                    answer = questions[question.pop("ask")](**question)
                except (duckdb.Error, OSError) as error:
                    answer = {"error": str(error)}
                sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
                sys.stdout.buffer.flush()
                asked = scanned = time.monotonic()
            try:
                if time.monotonic() - scanned > POLL:
                    scanned = time.monotonic()
                    index.scan()
                index.read_back()
            except (duckdb.Error, OSError) as error:
                print(f"telemetry index: {error}", file=sys.stderr)
                time.sleep(POLL)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


if __name__ == "__main__":
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the page's process handles Ctrl-C, and this one ends with it
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
