from __future__ import annotations

import gc
import importlib.metadata
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from lab import options
from lab.chaos.experiments import EXPERIMENTS
from lab.check import conclusion
from lab.cli import dicelab, main
from lab.client import NotRunning
from lab.load.generator import PROFILES
from lab.paths import DOCS
from lab.supervise import stages
from lab.supervise.overview import print_overview

STATE: dict[str, Any] = {
    "stage": 6,
    "telemetry": "fast",
    "services": [
        {"name": "dice-roller", "url": "http://127.0.0.1:8000", "pid": 1234567, "restarts": 2},
        {"name": "frontend", "url": "http://127.0.0.1:8002", "pid": 1234568, "restarts": 0},
    ],
    "engines": [{"name": "postgres-exporter", "url": "http://127.0.0.1:8011", "pid": 1234569, "restarts": 0}],
    "postgres": {"url": "postgresql://", "pid": 1234570, "restarts": 0},
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options that a command was run with."""
    found: dict[str, Any] = {}

    def run(module: str, options: dict[str, Any]) -> int:
        found.update(options)
        return 0

    monkeypatch.setattr("lab.cli._run", run)
    return found


def test_garbage_is_collected_while_a_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collecting: list[bool] = []

    def run(*_: object) -> int:
        collecting.append(gc.isenabled())
        return 0

    monkeypatch.setattr("lab.supervise.status.run", run)
    assert main(["status", "--run-dir", str(tmp_path)]) == 0
    assert collecting == [True]


def test_version() -> None:
    assert CliRunner().invoke(dicelab, ["--version"]).output.split()[-1] == importlib.metadata.version("dicelab")


def test_help_imports_no_command_modules() -> None:
    code = "import sys, lab.cli; lab.cli.main(['--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *text, modules = result.stdout.splitlines()
    assert any("chaos" in line for line in text)
    assert not {"aiohttp", "opentelemetry", "psycopg2", "rich.console", "lab.client"}.intersection(modules.split())


def test_help_of_each_command_fits_60_columns() -> None:
    for name, command in dicelab.commands.items():
        result = CliRunner().invoke(dicelab, [name, "--help"], terminal_width=60)
        assert result.exit_code == 0
        assert command.help
        assert max(map(len, result.output.splitlines())) <= 60, name


def test_option_choices_match_the_code() -> None:
    assert set(options.EXPERIMENTS) == set(EXPERIMENTS)
    assert set(options.PROFILES) == set(PROFILES)
    assert len(stages.SERVICES) == 3  # the highest base port leaves room for three


@pytest.mark.parametrize(
    ("text", "dice"), [("fair", {"fair": 1.0}), ("fair=3,risky", {"fair": 3.0, "risky": 1.0}), ("x=0.5", {"x": 0.5})]
)
def test_die_option_parses_proportions(given: dict[str, Any], text: str, dice: dict[str, float]) -> None:
    assert main(["traffic", "--die", text]) == 0
    assert given["die"] == dice


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["traffic", "--die", "fair=0"], "not a die with a proportion above 0"),
        (["traffic", "--die", "=1"], "not a die with a proportion above 0"),
        (["traffic", "--die", "fair=x"], "not a die with a proportion above 0"),
        (["traffic", "--die", "fair=1e308,risky=1e308"], "add up to more than a number can hold"),
        (["traffic", "--rate", "nan"], "nan is not from 0.1 to 100000 a second"),
        (["traffic", "--users", "1.5"], "not a whole number"),
        (["traffic", "--url", "localhost"], "not a URL such as"),
        (["traffic", "--url", "http://"], "not a URL such as"),
        (["traffic", "--url", "http://:8002"], "not a URL such as"),
        (["traffic", "--url", "http:///roll"], "not a URL such as"),
        (["traffic", "--url", "http://127.0.0.1:99999"], "not a URL such as"),
        (["traffic", "--url", "http://[1"], "not a URL such as"),
        (["load-db", "--ratio", "1"], "not a ratio such as 1:4"),
        (["load-db", "--ratio", "1e308:1e308"], "not a ratio such as 1:4"),
        (["load-db", "--ratio", "0:0"], "not a ratio such as 1:4"),
        (["chaos", "earthquake"], "database-down"),
        (["chaos", "loki-down", "--url", "http://127.0.0.1:8002"], "--url needs --kubernetes"),
        (["chaos", "loki-down", "--kubernetes", "--compose"], "--kubernetes cannot be combined with --compose"),
        (["check", "--url", "tempo=localhost"], "not a URL such as"),
        (["check", "--url", "http://127.0.0.1:8002", "--schema"], "--url cannot be combined with"),
        (["up", "--telemetry", "none"], "standard"),
        (["up", "--stag", "3"], "--stage"),
        (["up", "--stage", "9"], "9 is not from 1 to 6"),
        (["check", "--stage", "0"], "0 is not from 1 to 6"),
        (["check", "--url", "http://127.0.0.1:8002"], "--url and --compose need --stage"),
        (["check", "--compose"], "--url and --compose need --stage"),
        (["dwon"], "down"),
    ],
)
def test_wrong_usage_is_reported_and_nothing_runs(
    given: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main(arguments) == 2
    assert text in " ".join(capsys.readouterr().err.split())
    assert not given


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["up", "--sampling", "tail"], "SAMPLING=tail needs --engines"),
        (["check", "--stage", "2", "--url", "tempo=http://127.0.0.1:3200"], "give the address of the frontend"),
        (["check", "--stage", "2", "--url", "nosuch=http://127.0.0.1:1"], "stage 2 has no nosuch"),
        (["traffic", "--rate", "5", "--max-rolls", "3"], "do not go with it"),
        (["traffic", "--rate", "5", "--think-time", "3"], "do not go with it"),
    ],
)
def test_options_that_a_command_cannot_combine_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main([*arguments, "--run-dir", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def command(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    given = [sys.executable, "-m", "lab.cli", *map(str, arguments)]
    return subprocess.run(given, check=False, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.parametrize("arguments", [["--help"], ["learn"], ["learn", "list", "--json"], ["sql", "SELECT 1"]])
def test_a_full_disk_behind_stdout_is_reported_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    for name in ("logs", "traces"):
        (tmp_path / name).mkdir()
    run_dir = [] if arguments == ["--help"] else ["--run-dir", str(tmp_path)]
    with open("/dev/full", "w") as full:
        done = command(*arguments, *run_dir, stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "dicelab: the output cannot be written: No space left on device\n",
    )


def test_characters_that_the_encoding_of_stdout_lacks_are_replaced() -> None:
    done = command("learn", "guide", "2", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    expected = next((DOCS / "stages").glob("2-*.md")).read_text()
    assert not expected.isascii()
    assert done.stdout.rstrip() == expected.encode("ascii", "replace").decode().rstrip()


def test_addresses_have_a_name_or_none(given: dict[str, Any]) -> None:
    assert main(["check", "--stage", "1", "--url", "http://lab/?a=b/", "--url", "tempo=http://tempo:3200/"]) == 0
    assert given["addresses"] == (("", "http://lab/?a=b"), ("tempo", "http://tempo:3200"))


def test_defaults_of_ratio_and_run_dir(given: dict[str, Any]) -> None:
    assert main(["load-db"]) == 0
    assert given["ratio"] == (1.0, 4.0)
    assert given["run_dir"] == Path(".dicelab")


def overview(**console: Any) -> str:
    output = io.StringIO()
    print_overview(Console(file=output, **console), STATE, {"dice-roller": "ready", "frontend": "it does not answer"})
    return output.getvalue()


def test_overview_without_a_terminal_is_plain_text() -> None:
    lines = overview().splitlines()
    assert lines[0].strip() == "Dice Lab, stage 6, fast telemetry"
    rows = [line.split() for line in lines[2:]]
    assert [row[0] for row in rows] == ["dice-roller", "frontend", "postgres-exporter", "postgres"]
    assert rows[0][1:] == ["http://127.0.0.1:8000", "1234567", "ready,", "started", "again", "2x"]
    assert all(character.isascii() for character in overview())


def test_overview_fits_60_columns_and_honours_no_color() -> None:
    text = overview(force_terminal=True, width=60, no_color=True)
    plain = Text.from_ansi(text).plain
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 60
    assert "http://127.0.0.1:8011" in plain
    assert not re.search(r"\x1b\[[\d;]*\b(?:3[0-7]|9[0-7]|38)\b", text)


@pytest.mark.parametrize(
    ("missing", "engines", "text"),
    [
        (0, [], "All features work."),
        (0, ["tempo", "loki", "tempo"], "All checked features work; 3 not checked: no Loki, Tempo"),
        (2, [], "2 missing"),
        (1, [""], "1 missing; 1 not checked"),
    ],
)
def test_conclusion_of_a_check(missing: int, engines: list[str], text: str) -> None:
    assert conclusion(missing, [NotRunning("", engine) for engine in engines]) == text
