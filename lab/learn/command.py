"""``dicelab learn``: exercises on the running lab."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lab import LabError
from lab.learn import READING
from lab.learn.course import NEW, Course
from lab.terminal import say

MAX_BYTES = 1024 * 1024  # bytes of an answer in a file
WRONG, BAD_INPUT = 1, 2
MARKS = {True: ("✔", "green"), False: (" ", "")}


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        words: nothing or ``list``, the number of an exercise, or an action with a number and an answer.
        file: the file that holds the answer.
    """

    run_dir: Path
    words: Sequence[str]
    file: Path | None
    json: bool


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 when it is done or the answer is right, 1 for a wrong answer, 2 for an error."""
    try:
        return _run(Course(options.run_dir), options, console)
    except LabError as error:
        print(f"dicelab: {error}", file=sys.stderr)
        return BAD_INPUT


def _run(course: Course, options: Options, console: Console) -> int:
    action, *rest = options.words or ("list",)
    if action[:1].isdigit():
        action, rest = "ask", [action, *rest]
    if options.file is not None and action != "answer":
        raise LabError("--file holds an answer: dicelab learn answer N.M --file FILE")
    if action == "reset":
        _expect(rest, 0, 1, "dicelab learn reset [N.M]")
        course.reset(rest[0] if rest else None)
        say(console, f"Exercise {rest[0]} is forgotten." if rest else "All progress is forgotten.")
        return 0
    if action == "answer":
        _expect(rest, 1, 10_000, "dicelab learn answer N.M ANSWER")
        verdict = asyncio.run(course.answer(rest[0], _answer(rest[1:], options.file)))
        if options.json:
            print(json.dumps({"exercise": rest[0], "right": verdict.right, "text": verdict.text}))
        else:
            say(console, verdict.text, "green" if verdict.right else "yellow")
        return 0 if verdict.right else WRONG
    if action == "ask":
        _expect(rest, 1, 1, "dicelab learn N.M")
        asyncio.run(course.ask(rest[0]))
        action = "question"
    if action not in READING:
        raise LabError(
            f"no such action: {action[:40]!r}; there are list, guide, N.M, question, answer, hint, solution and reset"
        )
    words = 0 if action == "list" else 1
    _expect(rest, words, words, f"dicelab learn {action}{' N' if action == 'guide' else ' N.M' if words else ''}")
    document = course.document(action, *rest)
    if options.json:
        print(json.dumps(document, indent=2))
    elif action == "list":
        _list(document, console)
    else:
        say(console, document["text"])
        if action == "question":
            say(console, f"\nAnswer: dicelab learn answer {rest[0]} ANSWER\nANSWER is {document['expected']}.", "dim")
    return 0


def _expect(words: Sequence[str], least: int, most: int, usage: str) -> None:
    if not least <= len(words) <= most:
        raise LabError(f"usage: {usage}")


def _answer(words: Sequence[str], file: Path | None) -> str:
    if file is None:
        return " ".join(words)
    if words:
        raise LabError("the answer is given twice: on the command line and by --file")
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise LabError(f"{file}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise LabError(f"{file}: longer than {MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise LabError(f"{file}: not a text in UTF-8") from None


def _list(entries: list[dict[str, Any]], console: Console) -> None:
    stage = 0
    for entry in entries:
        if entry["stage"] != stage:
            stage = entry["stage"]
            say(console, f"Stage {stage}", "bold")
        mark, style = MARKS[entry["done"]]
        tries = "1 try" if entry["tries"] == 1 else f"{entry['tries']} tries"
        state = "" if entry["state"] == NEW else f"{entry['state']}, {tries}"
        engines = f"needs {', '.join(entry['engines'])}" if entry["engines"] else ""
        say(console, f" {mark} {entry['exercise']}  {entry['title']:52} {state or engines}".rstrip(), style)
    done = sum(entry["done"] for entry in entries)
    say(console, f"{done} of {len(entries)} done. Begin with dicelab learn N.M")
    obstacles = {entry["needs"] for entry in entries if entry["needs"] and not entry["done"]}
    if len({entry["needs"] for entry in entries}) == 1 and obstacles:
        say(console, obstacles.pop(), "yellow")
