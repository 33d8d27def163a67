"""The commands of the Makefile, as ``make --dry-run`` prints them."""

from __future__ import annotations

import subprocess

import pytest

from lab.paths import ROOT


@pytest.mark.parametrize("target", ["up", "down"])
def test_arguments_are_passed_on_to_the_lab(target: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", target, "ARGS=--run-dir elsewhere"]
    printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"dicelab {target}" in printed
    assert printed.rstrip().endswith("--run-dir elsewhere")
