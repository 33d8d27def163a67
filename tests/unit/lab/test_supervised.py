"""A process that ends is restarted, after growing pauses."""

from __future__ import annotations

import asyncio

import pytest

from lab.supervise.supervised import Supervised


class Fragile(Supervised):
    """Ends as soon as it is started."""

    def __init__(self) -> None:
        super().__init__("fragile")
        self.broken = asyncio.Event()
        self.starts = 0

    @property
    def pid(self) -> int:
        return self.starts

    async def _break(self) -> None:
        self.broken.set()

    async def _ended(self) -> None:
        if self.starts < 4:
            return
        await self.broken.wait()
        self.broken.clear()

    async def _start(self) -> bool:
        self.starts += 1
        return self.starts != 2  # the second start fails


async def test_restart_pauses_grow_and_a_released_process_starts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.supervise.supervised.FIRST_PAUSE", 0.01)
    kept, pauses = Fragile(), []
    started: asyncio.Queue[int] = asyncio.Queue()
    keeper = asyncio.ensure_future(
        kept.supervise(lambda _, pause: pauses.append(pause), lambda _: started.put_nowait(kept.starts))
    )
    assert [await started.get() for _ in range(3)] == [1, 3, 4]
    assert pauses == [0.01, 0.02, 0.04, 0.08]
    assert kept.restarts == 3
    await kept.hold()
    await asyncio.sleep(0.05)
    assert started.empty()
    kept.release()
    assert await started.get() == 5
    assert len(pauses) == 4  # the process was stopped intentionally
    keeper.cancel()
