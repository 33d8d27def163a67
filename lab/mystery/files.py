"""A recorded case as files: the directory ``case`` can be handed out, the answer is outside of it.

::

    DIR/case/spans.jsonl           OTLP JSON, a document a line
    DIR/case/lines.jsonl           log lines, a JSON object a line
    DIR/case/samples.openmetrics   every /metrics page, with timestamps; the service is the label job
    DIR/case/question.json
    DIR/case/SHA256SUMS            for sha256sum -c
    DIR/answer.json                the truth, the plan, the nonce of the commitment, the checksum of SHA256SUMS
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import LabError
from lab.mystery.case import Case, Document, open_metrics, scrapes_of
from lab.mystery.plan import commitment
from lab.mystery.truth import Truth

VERSION = 1
CASE, ANSWER, QUESTION, SUMS = "case", "answer.json", "question.json", "SHA256SUMS"
SPANS, LINES, SAMPLES = "spans.jsonl", "lines.jsonl", "samples.openmetrics"


@dataclass(frozen=True)
class Recorded:
    """A case that was read from files."""

    case: Case
    truth: Truth
    question: Document
    indicators: Document


def prepare(directory: Path) -> None:
    """Check that a case can be written to a directory, before it is recorded.

    Raises:
        LabError: when it is not empty, or cannot be created.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise LabError(f"{directory} is not empty; give a directory that is new or empty")
    except OSError as error:
        raise LabError(f"{directory}: {error.strerror}") from None


def write(
    directory: Path, case: Case, truth: Truth, question: Document, indicators: Document, plan: Document, nonce: str
) -> None:
    """Write a case.

    Raises:
        LabError: when the files cannot be written.
    """
    inside = directory / CASE
    contents = {
        SPANS: _json_lines(case.exports),
        LINES: _json_lines(case.lines),
        SAMPLES: open_metrics(case.scrapes),
        QUESTION: json.dumps({"version": VERSION, **question, "ended": case.ended}, indent=1) + "\n",
    }
    sums = "".join(f"{_sum(text.encode())}  {name}\n" for name, text in sorted(contents.items()))
    answer = {
        "version": VERSION,
        "truth": truth.document(),
        "began": case.began,
        "plan": plan,
        "nonce": nonce,
        "indicators": indicators,
        "case": _sum(sums.encode()),
    }
    try:
        inside.mkdir(parents=True)
        for name, text in {**contents, SUMS: sums}.items():
            (inside / name).write_text(text)
        (directory / ANSWER).write_text(json.dumps(answer, indent=1) + "\n")
    except OSError as error:
        raise LabError(f"{error.filename or directory}: {error.strerror}") from None


def read(directory: Path) -> Recorded:
    """Read a case.

    Raises:
        LabError: when the directory holds no case, or the case was changed.
    """
    inside = directory / CASE
    try:
        answer = json.loads((directory / ANSWER).read_text())
        sums = (inside / SUMS).read_bytes()
        if answer["version"] != VERSION:
            raise ValueError("it is of another version")
        if _sum(sums) != answer["case"]:
            raise LabError(f"{inside / SUMS} is not of the case that {directory / ANSWER} answers")
        for line in sums.decode().splitlines():
            expected, _, name = line.partition("  ")
            if _sum((inside / name).read_bytes()) != expected:
                raise LabError(f"{inside / name} has been changed: its checksum does not match")
        question = json.loads((inside / QUESTION).read_text())
        if commitment(str(answer["nonce"]), answer["plan"]) != question["commitment"]:
            raise LabError(f"{directory / ANSWER} does not match the commitment of the question")
        case = Case(
            float(answer["began"]),
            float(answer["truth"]["ended"]),
            list(_documents(inside / SPANS)),
            list(_documents(inside / LINES)),
            scrapes_of((inside / SAMPLES).read_text()),
        )
        return Recorded(case, Truth.read(answer["truth"]), question, dict(answer["indicators"]))
    except OSError as error:
        raise LabError(f"{error.filename or directory}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{directory} holds no recorded case: {type(error).__name__}: {error}") from None


def _json_lines(documents: Any) -> str:
    return "".join(json.dumps(document, sort_keys=True) + "\n" for document in documents)


def _documents(path: Path) -> Iterator[Document]:
    with open(path) as file:
        for line in file:
            yield dict(json.loads(line))


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
