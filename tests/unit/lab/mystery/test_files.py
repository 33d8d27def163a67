from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from lab.cli import main
from lab.client import ROLLER
from lab.mystery import answer, files
from lab.mystery.case import Case, open_metrics, scrapes_of
from lab.mystery.plan import commitment, draw
from lab.mystery.samples import Scrape
from lab.mystery.situations import ROLLER_DIE_SERVICE, Facets
from tests.unit.lab.mystery.cases import BEGAN, ONSET, Roll, case, trace_at, truth

PAGE = """\
# TYPE rolls counter
rolls_total{die="a\\"b",job="x"} %d
rolls_created{die="a\\"b",job="x"} 1e9
# TYPE wait histogram
wait_bucket{le="0.5"} %d
wait_bucket{le="+Inf"} 9
wait_count 9
wait_sum 4.25
# TYPE open gauge
open 3
# EOF
"""
SCRAPES = [
    Scrape(BEGAN + 2.5 * number, service, PAGE % (number, number % 5))
    for number in range(4)
    for service in ("dice-roller", "frontend")
]
PLAN = draw(1, 2, Facets(6)).document()
NONCE = "00ff"


def slow(roll: Roll) -> None:
    roll.network[ROLLER] = 0.9


def recorded(directory: Path) -> Case:
    made = replace(case(slow), scrapes=SCRAPES)
    question = answer.question(Facets(6).components, BEGAN, None, commitment(NONCE, PLAN))
    right = truth(ROLLER_DIE_SERVICE, "slow-network", loaded=("fair", 6))
    files.prepare(directory)
    files.write(directory, made, right, question, {"moved": True}, PLAN, NONCE)
    return made


def values(scrapes: list[Scrape]) -> list[tuple[Any, ...]]:
    timed = Case(0, 0, [], [], scrapes).samples
    return sorted(
        (one.at, one.service, one.kind, one.sample.name, str(one.sample.labels), one.sample.value) for one in timed
    )


def test_scrapes_round_trip_through_one_open_metrics_text() -> None:
    text = open_metrics(SCRAPES)
    assert text.endswith("# EOF\n")
    assert values(scrapes_of(text)) == [
        (*one[:4], one[4].replace("'job': 'x'", "").replace(", }", "}"), one[5]) for one in values(SCRAPES)
    ]
    assert open_metrics(scrapes_of(text)) == text


def test_a_case_round_trips_through_its_files(tmp_path: Path) -> None:
    made = recorded(tmp_path / "one")
    found = files.read(tmp_path / "one")
    assert found.case.spans == made.spans
    assert list(found.case.lines) == list(made.lines)
    assert found.truth == truth(ROLLER_DIE_SERVICE, "slow-network", loaded=("fair", 6))
    assert found.indicators == {"moved": True}
    assert sorted(path.name for path in (tmp_path / "one" / "case").iterdir()) == [
        "SHA256SUMS",
        "lines.jsonl",
        "question.json",
        "samples.openmetrics",
        "spans.jsonl",
    ]


def test_the_case_to_hand_out_does_not_contain_the_answer(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "one" / "case", check=True)
    question = (tmp_path / "one" / "case" / "question.json").read_text()
    assert NONCE not in question
    assert str(PLAN["onset"]) not in question
    assert "situation" not in question


def test_a_changed_case_is_refused_in_one_line(tmp_path: Path) -> None:
    directory = tmp_path / "one"
    recorded(directory)
    lines = directory / "case" / "lines.jsonl"
    content = lines.read_text()
    lines.write_text(content.replace("ERROR", "INFO") + "\n")
    with pytest.raises(LabError, match=r"lines\.jsonl has been changed"):
        files.read(directory)
    lines.write_text(content)
    own = json.loads((directory / "answer.json").read_text())
    (directory / "answer.json").write_text(json.dumps({**own, "plan": {**own["plan"], "seed": 2}}))
    with pytest.raises(LabError, match="does not match the commitment"):
        files.read(directory)
    (directory / "answer.json").write_text("{}")
    with pytest.raises(LabError, match="holds no recorded case"):
        files.read(directory)
    (directory / "answer.json").unlink()
    with pytest.raises(LabError, match=r"answer\.json: No such file"):
        files.read(directory)


def test_a_case_is_only_written_to_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="is not empty"):
        files.prepare(tmp_path)
    with pytest.raises(LabError, match="file"):
        files.prepare(tmp_path / "file")


def test_score_is_the_same_each_time_and_refuses_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "one")
    given = tmp_path / "answer.json"

    def score(content: str) -> tuple[int, str, str]:
        given.write_text(content)
        status = main(["mystery", "score", "--json", str(tmp_path / "one"), str(given)])
        said = capsys.readouterr()
        return status, said.out, said.err

    right = {
        "component": ROLLER_DIE_SERVICE,
        "mechanism": "slow-network",
        "since": ONSET - BEGAN,
        "trace": trace_at(4),
        "query": "SELECT quantile_cont(duration_ms, 0.5) FROM spans WHERE name = 'GET'",
    }
    first, second = score(json.dumps(right)), score(json.dumps(right))
    assert first == second
    assert first[0] == 0
    assert json.loads(first[1])["score"] == 100
    for content, message in (
        ("", "no JSON"),
        ('{"component": "nobody"}', "component 'nobody' is not among"),
        ('{"component": "frontend", "query": "SELEC"}', "query: Parser Error"),
    ):
        status, output, error = score(content)
        assert (status, output) == (2, "")
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["gremlins"], 2, "no such action: 'gremlins'"),
        (["play"], 2, "no such action: 'play'"),
        (["record"], 2, "usage: dicelab mystery"),
        (["score", "a"], 2, "usage: dicelab mystery"),
        (["history", "a"], 2, "usage: dicelab mystery"),
        (["score", "nowhere", "nothing"], 1, "nowhere"),
        (["--answer", "there"], 2, "there is there already"),
        (["record", "new", "--answer", "other"], 2, "--answer is for a game"),
        ([], 1, "nothing runs in"),
        (["record", "new"], 1, "nothing runs in"),
        (["--level", "4"], 2, "4"),
        (["--minutes", "0"], 2, "0"),
        (["--minutes", "nan"], 2, "nan"),
        (["--seed", "x"], 2, "x"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    assert main(["mystery", "--run-dir", str(tmp_path / "run"), *arguments]) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.rstrip().count("\n") <= 3  # click shows the usage too
    assert not (tmp_path / "new").exists()


def test_the_seeds_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mystery", "seeds"]) == 0
    printed = capsys.readouterr().out.split()
    assert len(set(printed)) == 40
    assert main(["mystery", "seeds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == list(map(int, printed))
