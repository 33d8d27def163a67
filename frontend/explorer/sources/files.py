"""The run dir's files as a source of traces and log lines: the client of the process in ``index``."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from frontend.explorer.model import (
    BOUNDS,
    ERROR,
    MAX_SPANS,
    PAGE_FILES,
    Cell,
    Edge,
    LogLine,
    LogQuery,
    SourceError,
    Span,
    TraceQuery,
    TraceSummary,
    Volume,
    log_line,
    otlp_attributes,
    otlp_events,
    rfc3339,
)

MAX_ANSWER = 64 * 1024 * 1024  # bytes
TIMEOUT = 20.0  # seconds


class Files:
    """Queries the index of a run dir; starts its process for the first question, and again whenever it has ended."""

    name = "files"

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._process: Process | None = None
        self._work_dir = ""
        self._closed = False
        self._one_at_a_time = asyncio.Lock()
        self.behind = 0  # bytes of older lines that the index has not read yet

    async def trace(self, trace_id: str) -> list[Span]:
        return [_span(row) for row in (await self._ask("trace", trace_id=trace_id, limit=MAX_SPANS + 1))["spans"]]

    async def traces(self, query: TraceQuery) -> list[TraceSummary]:
        answer = await self._ask(
            "search",
            service=query.service,
            die=query.die,
            failed=query.failed,
            min_duration=int(query.min_duration_ms * 1e6),
            limit=query.limit,
            since=query.since,
            until=query.until,
        )
        return [
            TraceSummary(
                row["trace_id"],
                row["start"],
                row["duration"],
                row["name"],
                row["die"] or "",
                row["failed"],
                tuple(row["services"]),
                row["spans"],
            )
            for row in answer["traces"]
        ]

    async def heat(self, since: int, until: int, step: int) -> list[Cell]:
        answer = await self._ask("heat", since=since, until=until, step=step, bounds=BOUNDS)
        return [Cell(**row) for row in answer["cells"]]

    async def edges(self, since: int, until: int) -> list[Edge]:
        answer = await self._ask("edges", since=since, until=until)
        return [Edge(**row) for row in answer["edges"]]

    async def lines(self, query: LogQuery) -> list[LogLine]:
        answer = await self._ask("logs", limit=query.limit, **_conditions(query))
        return [log_line(row["line"], row["service"], row["level"]) for row in answer["lines"]]

    async def volume(self, query: LogQuery, step: int) -> list[Volume]:
        answer = await self._ask("volume", step=max(1, step // 1_000_000), **_conditions(query))
        return [Volume(row["start"] * 1_000_000, row["level"], row["count"]) for row in answer["volume"]]

    async def close(self) -> None:
        """End the process, if it runs; a question that still waits for it is answered with an error."""
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            with suppress(RuntimeError, ConnectionError):  # a pending question fails when the process ends
                await process.communicate()  # reads the pipes to their end, which closes them
            await process.wait()
        work_dir, self._work_dir = self._work_dir, ""
        if work_dir:  # a killed process has not removed it
            await asyncio.to_thread(shutil.rmtree, work_dir, ignore_errors=True)

    async def _ask(self, what: str, **query: Any) -> dict[str, Any]:
        # Completed even if the caller is cancelled: the answer must not be taken for that of the next question.
        answer = await asyncio.shield(asyncio.ensure_future(self._exchange({"ask": what, **query})))
        if "error" in answer:
            raise SourceError(f"The run dir's files cannot be read: {answer['error']}")
        self.behind = answer["behind"]
        return answer

    async def _exchange(self, question: dict[str, Any]) -> dict[str, Any]:
        async with self._one_at_a_time:
            try:
                return await asyncio.wait_for(self._answer(question), TIMEOUT)
            except (OSError, ValueError, asyncio.TimeoutError):
                await self._end()
                return {"error": "their index does not answer"}

    async def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        line = orjson.dumps(question, option=orjson.OPT_APPEND_NEWLINE)
        for _ in range(2):  # it may have ended after a while without questions
            process = self._process
            if process is None or process.returncode is not None:
                await self._end()
                if self._closed:
                    raise OSError("the index is closed")
                self._work_dir = tempfile.mkdtemp(prefix="dicelab-index-")
                process = self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "frontend.explorer.index.process", str(self._run_dir), self._work_dir),
                    stdin=PIPE,
                    stdout=PIPE,
                    limit=MAX_ANSWER,
                )
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(ConnectionError):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
                if answer:
                    document: dict[str, Any] = orjson.loads(answer)
                    return document
            await process.wait()
        raise OSError("the index ended twice")


def _conditions(query: LogQuery) -> dict[str, Any]:
    return {
        "service": query.service,
        "level": query.level,
        "text": query.text,
        "trace_id": query.trace_id,
        "span_id": query.span_id,
        "filters": [(entry.name, entry.value, entry.exclude) for entry in query.filters],
        "without": "" if query.page_files else PAGE_FILES,
        "since": rfc3339(query.since),
        "until": rfc3339(query.until),
    }


def _span(row: dict[str, Any]) -> Span:
    return Span(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parent_id=row["parent_id"],
        service=row["service"],
        name=row["name"],
        kind=row["kind"],
        start=row["start"],
        finish=row["finish"],
        failed=row["status"] == ERROR,
        message=row["message"],
        attributes=otlp_attributes(orjson.loads(row["attributes"] or "[]")),
        events=otlp_events(orjson.loads(row["events"] or "[]")),
    )
