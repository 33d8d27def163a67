"""Reading the files of a run dir while a lab writes and rotates them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lab.client import ROLLER, Lab
from lab.mystery import case
from lab.signals import format_time
from lab.supervise.rundir import RunDir

BEGAN = 1_767_268_800.0


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"timestamp": format_time(BEGAN + number), "n": number}) + "\n" for number in numbers)


async def test_lines_between_two_times_each_once_though_a_file_is_rotated_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl.1").write_text(lines(-5, 1, 2))
    (logs / "a.jsonl").write_text(lines(3, 4, 99) + '{"timestamp": "half')
    os.utime(logs / "a.jsonl.1", (BEGAN + 2, BEGAN + 2))
    (logs / "old.jsonl").write_text(lines(5))
    os.utime(logs / "old.jsonl", (BEGAN - 1, BEGAN - 1))  # last written before the game
    listed = Path.glob
    rotations = iter([True])

    def glob(self: Path, pattern: str, **more: Any) -> Iterator[Path]:
        paths = list(listed(self, pattern, **more))
        if self == logs and next(rotations, False):
            (logs / "a.jsonl.1").rename(logs / "a.jsonl.2")
            (logs / "a.jsonl").rename(logs / "a.jsonl.1")
            (logs / "a.jsonl").write_text(lines(6))
        return iter(paths)

    monkeypatch.setattr(Path, "glob", glob)
    lab = Lab(RunDir(tmp_path), "http://127.0.0.1:1", state={"stage": 6})
    found = await case.collect(lab, BEGAN, BEGAN + 60, [])
    assert sorted(line["n"] for line in found.lines) == [1, 2, 3, 4, 6]


async def test_the_trace_of_an_answer_is_fetched_from_tempo_whichever_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"{number:032x}" for number in range(1, 8)]
    (tmp_path / "logs").mkdir()
    texts = [
        json.dumps({"timestamp": format_time(BEGAN + number), "trace_id": name}) for number, name in enumerate(ids)
    ]
    (tmp_path / "logs" / "a.jsonl").write_text("".join(f"{text}\n" for text in texts))

    async def trace(request: web.Request) -> web.Response:
        span = {"traceId": request.match_info["id"], "spanId": "0" * 15 + "1", "name": "GET /roll", "kind": 2}
        span |= {"startTimeUnixNano": str(int(BEGAN * 1e9)), "endTimeUnixNano": str(int(BEGAN * 1e9))}
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": ROLLER}}]}
        export = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
        return web.json_response({"trace": export})

    tempo = web.Application()
    tempo.router.add_get("/api/v2/traces/{id}", trace)
    monkeypatch.setattr(case, "TEMPO_TRACES", 3)
    async with TestServer(tempo) as server:
        engines = {"tempo": str(server.make_url("")).rstrip("/")}
        async with Lab(RunDir(tmp_path), "http://127.0.0.1:1", engines=engines, state={"stage": 6}) as lab:
            found = await case.collect(lab, BEGAN, BEGAN + 60, [], [ids[1]])
    assert set(found.traces) == {ids[0], ids[1], ids[3], ids[6]}
