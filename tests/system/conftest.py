from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.supervise import engines
from tests.support import labs
from tests.support.browser import blank_page, browser, idle_contexts, open_page
from tests.support.labs import Lab

__all__ = ["blank_page", "browser", "idle_contexts", "open_page"]  # fixtures


# Files that take more than a minute start first, in this order: otherwise the last one would keep only one worker busy.
# The bench, which loads the machine, is far from files that measure time: guides, chaos, database, lifecycle.
LONG = (
    *("page", "bench", "learn", "explorer", "guides", "accessibility", "dicelab", "chaos", "schema", "rules"),
    *("panels", "mystery", "lifecycle", "learn_page", "traffic"),
)
assert all((Path(__file__).parent / f"test_{name}.py").is_file() for name in LONG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort long files first. Tests in the browser share it, and therefore its event loop."""
    items.sort(key=_place)
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def _place(item: pytest.Item) -> int:
    name = item.path.stem.removeprefix("test_")
    return LONG.index(name) if item.path.parent == Path(__file__).parent and name in LONG else len(LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.engines("loki", ...)``: the test runs against these real engines if they are on PATH."""
    for marker in item.iter_markers("engines"):
        missing = [engine.name for engine in engines.ENGINES if engine.name in marker.args and not engine.find()]
        if missing:
            pytest.skip(f"not on PATH: {', '.join(missing)}")


@pytest.fixture(scope="session")
def stage_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """One running lab for each stage and set of variables, shared by all tests that do not change it."""
    running: dict[tuple[object, ...], Lab] = {}

    def of_stage(stage: int, **settings: str) -> Lab:
        key = stage, *settings.items()
        if key not in running:
            running[key] = labs.start(tmp_path_factory.mktemp(f"stage{stage}") / "run", stage, **settings)  # type: ignore[arg-type]
        return running[key]

    yield of_stage
    for lab in running.values():
        lab.stop()


@pytest.fixture(scope="module")
def high_priority() -> Iterator[None]:
    """Raises the priority of tests of durations; their labs and commands inherit it.

    Only root may raise a priority; for other users this fixture changes nothing.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, before - 10)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)


@pytest.fixture(params=["standard", "fast"])
def telemetry(request: pytest.FixtureRequest) -> str:
    """``TELEMETRY``: the test runs once with each value."""
    return str(request.param)


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Start labs for one test, which may break them; they are stopped after the test."""
    started: list[Lab] = []

    def of_stage(stage: int, *arguments: str, **settings: object) -> Lab:
        lab = labs.start(tmp_path / f"run{len(started)}", stage, *arguments, **settings)  # type: ignore[arg-type]
        started.append(lab)
        return lab

    yield of_stage
    for lab in started:
        lab.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser that ``make test`` installs."""
    found = (shutil.which(name) for name in ("chromium-headless-shell", "chromium"))
    path = os.environ.get("CHROMIUM") or next(filter(None, found), "")
    assert Path(path).is_file(), f"no browser at {path!r}; install chromium-headless-shell or set CHROMIUM"
    return path
