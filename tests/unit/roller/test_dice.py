"""The domain: faces and failures of dice, single and in batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from roller.catalogue import BUILTIN
from roller.dice import Die, Roller, RollFailed

FAIR, RISKY = BUILTIN
EXTREME = Die("extreme", (0, 0, 6, 6, 6, 6), 0.5)


class Watcher:
    """Records a batch's calls for each of its rolls."""

    def __init__(self) -> None:
        self.under_way = 0
        self.most_under_way = 0
        self.faces: dict[int, int] = {}
        self.failed: set[int] = set()

    @contextmanager
    def __call__(self, index: int) -> Iterator[Callable[[int], None]]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            yield lambda face: self.faces.update({index: face})
        except RollFailed:
            self.failed.add(index)
            raise
        finally:
            self.under_way -= 1


async def faces_of(die: Die, rolls: int, seed: int) -> Counter[int | None]:
    roller = Roller(max_delay=0, seed=seed)
    return Counter(await roller.roll_batch(die, rolls, Watcher()))


@pytest.mark.parametrize("die", [FAIR, RISKY, EXTREME], ids=lambda die: die.name)
async def test_faces_and_failures_follow_the_specification(die: Die) -> None:
    rolls = 6000
    seen = await faces_of(die, rolls, seed=20)
    expected: dict[int | None, float] = {None: rolls * die.error_rate}
    for face in die.faces:
        expected[face] = rolls * (1 - die.error_rate) * die.faces.count(face) / len(die.faces)
    assert {face for face in seen if seen[face]} == {face for face, count in expected.items() if count}
    chi_square = sum((seen[face] - count) ** 2 / count for face, count in expected.items() if count)
    assert chi_square < 13.8  # the 0.1 % quantile for the two degrees of freedom of extreme, the fewest


async def test_a_seed_makes_rolls_reproducible() -> None:
    assert await faces_of(RISKY, 50, seed=3) == await faces_of(RISKY, 50, seed=3)
    first, second = Roller(0, seed=3), Roller(0, seed=4)
    watcher = Watcher()
    assert await first.roll_batch(FAIR, 30, watcher) != await second.roll_batch(FAIR, 30, watcher)


async def test_a_batch_runs_all_rolls_concurrently_to_completion() -> None:
    watcher = Watcher()
    rolls = await Roller(max_delay=0.02, seed=5).roll_batch(EXTREME, 40, watcher)
    assert watcher.most_under_way == 40
    assert watcher.under_way == 0
    assert {index for index, face in enumerate(rolls, start=1) if face is None} == watcher.failed
    assert {index: face for index, face in enumerate(rolls, start=1) if face is not None} == watcher.faces
    assert watcher.failed
    assert watcher.faces


async def test_rolls_of_a_batch_overlap_even_without_a_delay() -> None:
    watcher = Watcher()
    await Roller(max_delay=0).roll_batch(FAIR, 12, watcher)
    assert watcher.most_under_way == 12


async def test_a_cancelled_batch_cancels_every_roll() -> None:
    watcher = Watcher()
    batch = asyncio.create_task(Roller(max_delay=60.0, seed=1).roll_batch(FAIR, 25, watcher))
    while watcher.under_way < 25:
        await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert watcher.under_way == 0
    assert not watcher.faces


async def test_an_unexpected_exception_is_not_a_failed_roll() -> None:
    @contextmanager
    def broken(index: int) -> Iterator[Callable[[int], None]]:
        raise ZeroDivisionError
        yield lambda face: None

    with pytest.raises(ZeroDivisionError):
        await Roller(max_delay=0).roll_batch(FAIR, 3, broken)


@pytest.mark.parametrize(("faces", "error_rate"), [((), 0.0), ((1,), -0.1), ((1,), 1.1), ((1,), float("nan"))])
def test_an_invalid_die_is_refused(faces: tuple[int, ...], error_rate: float) -> None:
    with pytest.raises(ValueError, match="odd"):
        Die("odd", faces, error_rate)


async def test_a_blocking_roller_blocks_the_event_loop() -> None:
    roller, watcher = Roller(max_delay=0.01, seed=1, blocking=True), Watcher()
    await roller.roll_batch(FAIR, 5, watcher)
    assert watcher.most_under_way == 1
    await Roller(max_delay=0.01, seed=1).roll_batch(FAIR, 5, watcher)
    assert watcher.most_under_way == 5


# --- injected defects ---


async def test_a_loaded_die_shows_its_face_and_others_do_not_change() -> None:
    roller = Roller(max_delay=0, seed=5)
    roller.weight({"die": "fair", "face": 6, "share": 1.0})
    assert set(await roller.roll_batch(FAIR, 50, Watcher())) == {6}
    assert len(set(await roller.roll_batch(RISKY, 200, Watcher()))) > 5
    roller.weight(None)
    assert len(set(await roller.roll_batch(FAIR, 200, Watcher()))) == 6


async def test_a_defect_of_one_die_does_not_change_the_faces_of_others() -> None:
    roller, other = Roller(0, seed=5), Roller(0, seed=5)
    roller.weight({"die": "loaded", "face": 6, "share": 1.0})
    assert await roller.roll_batch(FAIR, 50, Watcher()) == await other.roll_batch(FAIR, 50, Watcher())


async def test_a_slow_roller_takes_longer() -> None:
    loop = asyncio.get_running_loop()
    roller = Roller(max_delay=0)
    roller.slow(0.5)
    began = loop.time()
    await roller.roll(FAIR)
    assert loop.time() - began >= 0.5
    roller.slow(None)
    began = loop.time()
    await roller.roll(FAIR)
    assert loop.time() - began < 0.5


@pytest.mark.parametrize("always", [False, True])
async def test_blocking_can_be_switched(always: bool) -> None:
    roller = Roller(max_delay=0.02, blocking=always)
    for on, expected in ((True, 1), (None, 1 if always else 3)):
        roller.block(on)
        watcher = Watcher()
        await roller.roll_batch(FAIR, 3, watcher)
        assert watcher.most_under_way == expected
