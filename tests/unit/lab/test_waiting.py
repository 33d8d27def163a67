from __future__ import annotations

import time

from lab.waiting import until, within


def test_the_first_attempt_is_immediate_even_after_the_deadline() -> None:
    assert sum(1 for _ in until(time.monotonic() - 1)) == 1


def test_attempts_are_repeated_up_to_the_deadline() -> None:
    started = time.monotonic()
    attempts = [time.monotonic() - started for _ in within(0.6, poll=0.06)]
    assert len(attempts) >= 3
    assert attempts[-1] >= 0.6  # the last attempt is at the deadline, not one interval earlier


async def test_else_runs_after_the_deadline() -> None:
    never = time.monotonic() - 1
    outcome = []
    for _ in within(0):
        if never > time.monotonic():
            break
    else:
        outcome.append("blocking")
    async for _ in within(0.01, poll=0.001):
        if never > time.monotonic():
            break
    else:
        outcome.append("asynchronous")
    assert outcome == ["blocking", "asynchronous"]


async def test_success_ends_the_loop() -> None:
    attempts = 0
    async for _ in within(10, poll=0):
        attempts += 1
        if attempts == 3:
            break
    else:
        raise AssertionError("the loop ran into its deadline")
    assert attempts == 3
