"""The pods of the manifests, run by podman in stand-ins for their images, until ``dicelab check`` is green."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support import pods
from tests.support.containers import Unavailable
from tests.support.pods import Node

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(pods.node(tmp_path_factory.mktemp("node")))
        except Unavailable as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("stage", [1, 3, 6])
def test_the_pods_of_a_stage_are_ready_and_complete(node: Node, stage: int) -> None:
    started = time.monotonic()
    with node.stage(stage) as pods:
        pods.wait_until_ready(120)
        ready = time.monotonic()
        checked = pods.dicelab("check", "--url", pods.front, f"--stage={stage}", "--timeout=60")
        assert checked.returncode == 0, f"{checked.stdout}\n{checked.stderr}\n{pods.last_lines()}"
        green = time.monotonic()
        print(f"\nstage {stage}: ready after {ready - started:.0f} s, green after {green - started:.0f} s")
        print(checked.stdout)
        for name, container in pods.inspect().items():
            assert container["State"]["Running"], name
            assert container["RestartCount"] == 0, name
            assert container["HostConfig"]["ReadonlyRootfs"], name
            assert not container["EffectiveCaps"], name
