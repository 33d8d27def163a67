from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

from rich.console import Console

from lab.supervise.tail import LINES_PER_SECOND, Tail, render


def line(number: int, level: str = "INFO") -> bytes:
    fields = {"timestamp": "2026-01-02T03:04:05.678Z", "level": level, "message": f"roll {number}"}
    return json.dumps(fields, separators=(",", ":")).encode()


def shown(tail: Tail, output: io.StringIO) -> list[str]:
    tail.stop()
    return output.getvalue().splitlines()


def start() -> tuple[Tail, io.StringIO]:
    output = io.StringIO()
    return Tail(Console(file=output), Path("/run/logs")), output


def test_few_lines_are_all_shown_in_order() -> None:
    tail, output = start()
    tail.lines("dice-roller", [line(1), line(2, "ERROR"), line(3), b"Traceback of a crash"])
    lines = shown(tail, output)
    assert [one.partition("roll ")[2] for one in lines[:3]] == ["1", "2", "3"]
    assert "Traceback of a crash" in lines[3]
    assert len(lines) == 4


def test_errors_are_shown_and_other_lines_counted() -> None:
    tail, output = start()
    tail.lines("dice-roller", [line(number, "ERROR" if number % 1000 == 0 else "INFO") for number in range(10_000)])
    lines = shown(tail, output)
    rolls = [one for one in lines if "dice-roller" in one]
    assert sum("ERROR" in one for one in rolls) == 10
    assert len(rolls) <= 2 * LINES_PER_SECOND
    assert lines[-1] == f"… {10_000 - len(rolls):,} more lines; all lines are in /run/logs"


def test_lines_per_second_are_limited() -> None:
    tail, output = start()
    started = time.monotonic()
    given = 0
    while time.monotonic() - started < 2.2:
        tail.lines("dice-roller", [line(given + number, "ERROR") for number in range(100)])
        given += 100
        time.sleep(0.01)
    elapsed = time.monotonic() - started
    before_stop = output.getvalue().splitlines()
    printed = sum("dice-roller" in one for one in before_stop)
    assert LINES_PER_SECOND <= printed <= LINES_PER_SECOND * (elapsed + 1)  # a burst of one second comes first
    assert sum("more lines" in one for one in before_stop) >= 1
    lines = shown(tail, output)
    counts = [int(found[1].replace(",", "")) for one in lines if (found := re.match(r"… ([\d,]+) more lines", one))]
    assert sum(counts) + sum("dice-roller" in one for one in lines) == given
    assert all("of them errors" in one for one in lines if "more lines" in one)


def test_the_tail_escapes_control_characters() -> None:
    line = json.dumps(
        {
            "timestamp": "2026-01-02T03:04:05.678Z",
            "level": "ERROR",
            "message": "Roll \x1b[2Jfailed",
            "logger": "dice-roller",
            "trace_id": "ab" * 16,
            "span_id": "cd" * 8,
            "die_type": "ris\x07ky",
        }
    )
    assert render("dice-roller", line.encode()).plain == (
        "03:04:05.678 dice-roller ERROR    Roll \\x1b[2Jfailed die_type=ris\\x07ky trace=abababab"
    )
    assert render("dice-roller", b"\x1b[31mnot json").plain.endswith("\\x1b[31mnot json")
