"""The command without a lab: the list, progress, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli import main
from lab.learn.catalogue import EXERCISES
from lab.learn.progress import Progress
from lab.supervise.rundir import RunDir
from tests.support.limits import file_size_limit

NUMBERS = [f"{stage}.{place}" for stage in range(1, 7) for place in range(1, 5)]


def learn(run_dir: Path, *words: str) -> int:
    return main(["learn", *words, "--run-dir", str(run_dir)])


def lab(run_dir: Path) -> None:
    """Make a run dir like that of a running lab whose process is this one."""
    directory = RunDir(run_dir)
    directory.claim()
    directory.write_state({"stage": 1, "services": [{"name": "dice-roller", "url": "http://127.0.0.1:1"}]})


def test_each_stage_has_four_exercises_in_order() -> None:
    assert list(EXERCISES) == NUMBERS


def test_only_exercises_about_queries_or_configuration_need_an_engine() -> None:
    needing = {number for number, one in EXERCISES.items() if one.engines or one.running}
    assert needing == {"1.4", "3.1", "3.3", "3.4", "5.4", "6.1", "6.4"}


def test_each_has_a_hint_a_solution_and_a_hint_for_each_typical_mistake() -> None:
    for exercise in EXERCISES.values():
        hints = [mistake.hint for mistake in exercise.mistakes]
        assert len(hints) >= 2
        assert len(set(hints)) == len(hints)
        assert min(map(len, (*hints, exercise.hint, exercise.solution, exercise.question))) > 20


def test_the_list_shows_the_requirements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn(tmp_path, "list", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["exercise"] for entry in entries] == NUMBERS
    assert {entry["state"] for entry in entries} == {"new"}
    assert all("no lab runs" in entry["needs"] or "not on PATH" in entry["needs"] for entry in entries)
    assert learn(tmp_path) == 0
    output = capsys.readouterr().out
    assert all(exercise.title in output for exercise in EXERCISES.values())
    assert "0 of 24 done" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["9.9"], "there is no exercise '9.9'"),
        (["1.1"], "no lab runs in this run dir; start one with dicelab up --stage 1"),
        (["4.4", "5"], "usage: dicelab learn N.M"),
        (["answer", "1.1", "42"], "exercise 1.1 has not been asked"),
        (["answer"], "usage: dicelab learn answer N.M ANSWER"),
        (["answer", "x", "42"], "there is no exercise 'x'"),
        (["solution", "1.1"], "begin one with dicelab learn 1.1"),
        (["guide", "7"], "there is no guide of a stage '7'"),
        (["guide", "../1"], "there is no guide of a stage '../1'"),
        (["hint"], "usage: dicelab learn hint N.M"),
        (["hint", "0.0"], "there is no exercise '0.0'"),
        (["reset", "1.1", "1.2"], "usage: dicelab learn reset [N.M]"),
        (["teach", "1.1"], "no such action: 'teach'"),
        (["list", "1.1"], "usage: dicelab learn list"),
        (["answer", "1.1", "1", "--file", "here.txt"], "given twice"),
        (["answer", "1.1", "--file", "not-there.txt"], "not-there.txt: No such file or directory"),
        (["1.1", "--file", "here.txt"], "--file holds an answer"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert learn(tmp_path, *words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("dicelab: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "status"), [(["1.1"], 2), (["answer", "1.1", "42"], 2), (["reset"], 0), (["reset", "1.1"], 0)]
)
def test_nothing_is_created_where_no_lab_has_run(tmp_path: Path, words: list[str], status: int) -> None:
    assert learn(tmp_path / "run", *words) == status
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab(tmp_path)
    with file_size_limit(0):
        assert learn(tmp_path, "1.1") == 2
    assert capsys.readouterr().err == f"dicelab: {tmp_path}/learn/lock: File too large\n"


def test_an_answer_in_a_binary_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer"
    file.write_bytes(b"\xff\xfe")
    assert learn(tmp_path / "run", "answer", "1.4", "--file", str(file)) == 2
    assert "not a text in UTF-8" in capsys.readouterr().err
    file.write_bytes(b"x" * 2_000_000)
    assert learn(tmp_path / "run", "answer", "1.4", "--file", str(file)) == 2
    assert "longer than" in capsys.readouterr().err


def test_answers_are_checked_without_a_lab_and_progress_survives_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(tmp_path)
    facts = {"before": 20, "after": 7, "first_total": 3, "succeeded": 26}
    with progress.locked():
        progress.write({"1.1": {"state": "asked", "facts": facts, "seed": 1}})
    assert learn(tmp_path, "answer", "1.1", "twenty-seven") == 2
    assert "is not a whole number" in capsys.readouterr().err
    assert progress.read()["1.1"].get("tries") is None  # the attempt did not count
    assert learn(tmp_path, "answer", "1.1", "7") == 1
    assert EXERCISES["1.1"].mistakes[0].hint in capsys.readouterr().out
    assert learn(tmp_path, "answer", "1.1", "27") == 0
    assert capsys.readouterr().out == "Right.\n"
    assert learn(tmp_path, "list", "--json") == 0
    entry = json.loads(capsys.readouterr().out)[0]
    assert (entry["state"], entry["tries"], entry["done"]) == ("right", 2, True)
    # A later wrong answer does not undo it.
    assert learn(tmp_path, "answer", "1.1", "28") == 1
    assert progress.read()["1.1"]["done"]
    assert learn(tmp_path, "reset", "1.1") == 0
    assert progress.read() == {}


def test_two_learners_on_one_run_dir_do_not_overwrite_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lab.learn.progress import Progress\n"
        "with Progress(Path(sys.argv[1])).locked():\n    print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        for words in (["answer", "1.1", "42"], ["1.1"], ["reset"]):
            assert learn(tmp_path, *words) == 2
            assert f"another learner is at work in {tmp_path} (process {other.pid})" in capsys.readouterr().err
        assert learn(tmp_path, "list") == 0
        other.communicate()
    assert learn(tmp_path, "reset") == 0


def test_progress_that_cannot_be_read_is_kept_until_it_is_reset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "learn" / "progress.json"
    file.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"version": 99, "exercises": {}}', '{"version": 1, "exercises": [1]}'):
        file.write_text(content)
        assert learn(tmp_path, "list") == 2
        assert "begin again with dicelab learn reset" in capsys.readouterr().err
        assert file.read_text() == content
    tmp_path.chmod(0o700)
    (tmp_path / "lock").touch()
    assert learn(tmp_path, "reset") == 0
    assert learn(tmp_path, "list") == 0
