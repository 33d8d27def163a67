"""Garbage collection: off during imports, and on again, but rare, once a service serves."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from web.tuning import reduce_garbage_collection


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()
    gc.enable()


def test_collections_are_on_and_rare_once_a_service_serves() -> None:
    gc.disable()
    reduce_garbage_collection()
    assert gc.isenabled()
    assert gc.get_threshold()[0] > 100_000
    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize("service", ["roller", "exporter"])
def test_collections_are_off_during_imports(service: str) -> None:
    code = f"""
import gc

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
import {service}.__main__
assert not gc.isenabled()
assert len(collections) < 4, collections  # with collections there are hundreds
"""
    subprocess.run([sys.executable, "-c", code], check=True)
