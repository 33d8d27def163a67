"""``dicelab diff`` without a lab: files, and comparisons of made-up stages."""

from __future__ import annotations

import json

import pytest

from lab.cli import main
from lab.diff.changes import document, text
from lab.diff.portrait import Item, Portrait, Trace
from tests.support.queries import panels


def portrait(number: int, **sections: dict[str, Item]) -> Portrait:
    return Portrait(number, {name.replace("_", " "): section for name, section in sections.items()})


def test_added_removed_and_changed() -> None:
    before = portrait(1, Settings={"A": Item("1"), "B": Item("1"), "C": Item("")}, Services={"x": Item()})
    after = portrait(2, Settings={"A": Item("2"), "C": Item(""), "D": Item("4")}, Services={"x": Item()})
    assert text(before, after) == ["Stage 1 → stage 2", "", "Settings", "  ~ A: 1 → 2", "  - B=1", "  + D=4"]
    assert text(after, before)[3:] == ["  ~ A: 2 → 1", "  - D=4", "  + B=1"]
    assert text(after, after) == ["Stage 2 → stage 2"]
    assert document(before, after)["settings"] == {
        "added": [{"name": "D", "value": "4", "note": ""}],
        "removed": [{"name": "B", "value": "1", "note": ""}],
        "changed": [{"name": "A", "before": "1", "after": "2"}],
    }


def test_a_note_alone_is_not_a_change() -> None:
    before, after = (portrait(1, Panels={"P": Item(note=note)}) for note in ("in A", "in B"))
    assert text(before, after) == ["Stage 1 → stage 1"]


def test_words_of_each_section() -> None:
    sections = {
        "Routes": {"roller GET /roll": Item("die, times"), "roller GET /": Item()},
        "Metrics": {"roller rolls_total": Item("{die}", "counter"), "roller up": Item(note="gauge")},
        "Log_fields": {"roll": Item("integer", "on lines of roller")},
        "Spans": {"roller GET": Item("client")},
        "Span_attributes": {"die.type": Item(note="on roller GET")},
    }
    nothing: dict[str, dict[str, Item]] = {name: {} for name in sections}
    lines = text(portrait(1, **nothing), portrait(2, **sections))
    assert [line for line in lines if line.startswith("  ")] == [
        "  + roller GET /roll?die&times",
        "  + roller GET /",
        "  + roller rolls_total{die}, counter",
        "  + roller up, gauge",
        "  + roll (integer), on lines of roller",
        "  + roller GET (client)",
        "  + die.type, on roller GET",
    ]


def test_metrics_that_every_service_has_are_one_line_of_text_and_entries_of_json() -> None:
    before = portrait(1, Metrics={"a x_total": Item("{l}")})
    after = portrait(2, Metrics={"a x_total": Item("{l}"), "b y": Item(), "b x_total": Item("{l}")})
    before.common = after.common = frozenset({"x_total"})
    assert text(before, after)[3:] == ["  + b y", "  + b, as every service: x_total"]
    added = document(before, after)["metrics"]["added"]
    assert [(entry["name"], entry["value"]) for entry in added] == [("b y", ""), ("b x_total", "{l}")]


def test_traces_side_by_side() -> None:
    before, after = portrait(3), portrait(4)
    before.traces = {"/roll": Trace('{"roll":1}', ("a GET",))}
    after.traces = {"/roll": Trace('{"roll":1}', ("a GET", "b └─ GET")), "/batch": Trace("{}", ("a GET",))}
    assert text(before, after)[1:] == [
        "",
        "GET /roll",
        '  stage 3: {"roll":1}   stage 4: {"roll":1}',
        "  a GET                 a GET",
        "                        b └─ GET",
        "",
        "GET /batch",
        "  stage 3: no such route   stage 4: {}",
        "                           a GET",
    ]
    assert document(before, after)["traces"][1] == {
        "request": "/batch",
        "before": None,
        "after": {"answer": "{}", "tree": ("a GET",)},
    }


def test_files_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "4", "5", "--no-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["changed"] == [{"name": "DICE_STORE", "before": "file", "after": "postgres"}]
    assert [entry["name"] for entry in found["services"]["added"]] == ["postgres"]
    before, after = ({panel["title"] for panel in panels(f"stage-{stage}")} for stage in (4, 5))
    assert {entry["name"] for entry in found["panels"]["added"]} == after - before
    assert found["traces"] == []
    assert main(["diff", "5", "5", "--no-run"]) == 0
    assert capsys.readouterr().out == "Stage 5 → stage 5\n"


@pytest.mark.parametrize("arguments", [["0", "1"], ["1", "7"], ["1"], ["one", "2"]])
def test_stages_that_do_not_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *arguments]) == 2
    assert capsys.readouterr().out == ""
