from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab.client import Lab
from lab.mystery.game import arrival
from lab.paths import COLLECTOR
from lab.supervise.rundir import RunDir


@pytest.mark.parametrize(("sampling", "waits"), [("none", False), ("tail", True)])
def test_a_game_waits_until_the_collector_has_decided_about_its_last_traces(
    tmp_path: Path, sampling: str, waits: bool
) -> None:
    configuration = yaml.safe_load((COLLECTOR / "sampling" / "tail.yaml").read_text())
    decided = float(configuration["processors"]["tail_sampling"]["decision_wait"].removesuffix("s"))
    lab = Lab(RunDir(tmp_path), "http://127.0.0.1:1", state={"stage": 6, "sampling": sampling})
    assert (arrival(lab) > decided) is waits
