"""The page's clock and its time range."""

from __future__ import annotations

import time

import pytest

from frontend.browser.clock import Clock, TimeRange

AT = 1767323045_678_000_000  # 2026-01-02T03:04:05.678Z


@pytest.mark.parametrize(
    ("zone", "offset", "shown", "name"),
    [
        ("Europe/Berlin", 60, "2026-01-02 04:04:05.678", "Europe/Berlin"),
        ("Asia/Kolkata", 330, "2026-01-02 08:34:05.678", "UTC+05:30, Asia/Kolkata"),
        ("Mars/Olympus", 90, "2026-01-02 04:34:05.678", "UTC+01:30"),  # no such zone: the offset is used
        ("../../etc/passwd", -90, "2026-01-02 01:34:05.678", "UTC-01:30"),
        (None, "much", "2026-01-02 03:04:05.678", "UTC"),
        ("UTC", 0, "2026-01-02 03:04:05.678", "UTC"),
    ],
)
def test_times_are_shown_in_the_browsers_time_zone(zone: object, offset: object, shown: str, name: str) -> None:
    clock = Clock()
    clock.set_zone(zone, offset)
    assert clock.full(AT) == shown
    assert name in clock.zone
    assert clock.parse_local(clock.local_input(AT)) == AT // 1_000_000_000 * 1_000_000_000


@pytest.mark.parametrize("text", ["5m", "24h", "all", "1767323045000-1767323046000"])
def test_a_range_round_trips_through_the_url(text: str) -> None:
    assert str(TimeRange.read(text)) == text


@pytest.mark.parametrize("text", ["", "2h", "5-4", "1767323046000-1767323045000", "-", None, 7])
def test_an_invalid_range_falls_back_to_the_last_hour(text: object) -> None:
    assert TimeRange.read(text) == TimeRange("1h")


def test_a_range_has_bounds() -> None:
    before = time.time_ns()
    since, until = TimeRange("5m").bounds()
    assert until == 0
    assert before - 301e9 <= since <= time.time_ns() - 300e9
    assert TimeRange("all").bounds() == (0, 0)
    assert TimeRange.read("1767323045000-1767323046000").bounds() == (1767323045 * 10**9, 1767323046 * 10**9)
