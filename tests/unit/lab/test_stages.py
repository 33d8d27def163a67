"""The stages' env files."""

from __future__ import annotations

from lab.supervise import stages


def test_each_stage_file_is_complete() -> None:
    names = [set(stages.load(number).variables) - {"DICE_STORE", "OTEL_PROPAGATORS"} for number in stages.STAGES]
    assert all(variables == names[0] for variables in names)
