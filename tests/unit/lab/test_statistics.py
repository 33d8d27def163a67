"""The statistics of experiments, against published tables and simulations with known results."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lab.load import generator as load
from lab.load.generator import Record, Response
from lab.load.statistics import chi_square, expected_speedup, ratio_of_means, t_quantile

FAIR = (1, 2, 3, 4, 5, 6)


# NIST/SEMATECH e-Handbook of Statistical Methods, tables of upper critical values.
@pytest.mark.parametrize(("degrees", "value"), [(1, 12.706), (2, 4.303), (9, 2.262), (29, 2.045), (100, 1.984)])
def test_t_quantiles_match_published_tables(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("faces", "statistic", "p"), [(2, 3.841, 0.05), (3, 9.210, 0.01), (6, 20.515, 0.001)])
def test_chi_square_probabilities_match_published_tables(faces: int, statistic: float, p: float) -> None:
    # Two counts deviate by as much as gives this statistic, the others are as expected.
    expected = 600_000
    apart = round((statistic * expected / 2) ** 0.5)
    counts = dict.fromkeys(range(faces), expected) | {0: expected - apart, 1: expected + apart}
    test = chi_square(counts, tuple(range(faces)))
    assert test is not None
    assert test.degrees == faces - 1
    assert test.statistic == pytest.approx(statistic, rel=2e-3)
    assert test.p == pytest.approx(p, rel=0.01)


def test_chi_square_detects_loaded_dice() -> None:
    chance = random.Random(5)
    extreme = (0, 0, 6, 6, 6, 6)
    fair = chi_square(Counter(chance.choices(FAIR, k=3000)), FAIR)
    uneven = chi_square(Counter(chance.choices(extreme, k=3000)), extreme)
    loaded = chi_square(Counter(chance.choices((1, 2, 3, 4, 5, 6, 6), k=3000)), FAIR)
    assert fair is not None
    assert uneven is not None
    assert loaded is not None
    assert min(fair.p, uneven.p) > 0.01
    assert uneven.degrees == 1
    assert loaded.p < 1e-6
    never = chi_square(Counter({7: 1}), FAIR)
    assert never is not None
    assert never.p == 0
    assert chi_square(Counter(chance.choices(FAIR, k=29)), FAIR) is None
    assert chi_square(Counter({9: 100}), (9,)) is None


def test_confidence_interval_covers_the_true_ratio() -> None:
    """Simulates the waits: the sum of ten, and the longest of ten."""
    chance = random.Random(7)
    held = 0
    for _ in range(1000):
        one_by_one = [sum(chance.random() for _ in range(10)) for _ in range(10)]
        at_once = [max(chance.random() for _ in range(10)) for _ in range(10)]
        ratio = ratio_of_means(one_by_one, at_once)
        assert ratio.low is not None
        assert ratio.high is not None
        assert ratio.low < ratio.value < ratio.high
        held += ratio.low <= expected_speedup(10) <= ratio.high
    assert expected_speedup(10) == 5.5
    assert 925 <= held <= 975  # 3.6 standard deviations of a binomial around 950


def test_small_or_zero_samples_have_no_interval() -> None:
    assert ratio_of_means([2.0, 4.0], [1.0, 2.0]).low is None
    assert ratio_of_means([1.0, 1.0, 1.0], [0.1, -0.1, 0.1]).low is None  # the divisor could be zero
    assert ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value == 2


@pytest.mark.parametrize(("profile", "mean"), [("steady", 1.0), ("ramp", 0.505), ("spike", 0.36), ("day", 0.55)])
def test_profiles_have_the_expected_rate(profile: str, mean: float) -> None:
    due = list(load.arrivals(100, 60, load.PROFILES[profile]))
    assert due == sorted(due)
    assert due[-1] < 60
    assert len(due) == pytest.approx(100 * 60 * mean, rel=0.01)
    busiest = Counter(int(at) for at in due).most_common(1)[0][1]
    assert busiest == pytest.approx(100, abs=2)


def test_latencies_are_corrected_for_coordinated_omission() -> None:
    record = Record()
    for _ in range(98):
        record.add(Response("/roll", "200", {}, "", 0.1, 0.0))
    record.add(Response("/roll", "200", {}, "", 0.5, 0.0))  # no more than the interval
    record.add(Response("/roll", "503", {}, "", 10.0, 0.0))
    assert record.latencies.summary()["p90"] == pytest.approx(100, rel=0.01)
    corrected = record.latencies.corrected(0.5)
    # A stall of 10 s delayed nineteen requests that would have waited 9.5, 9 … 0.5 s.
    assert len(corrected) == 119
    assert corrected.summary()["p90"] == pytest.approx(4000, rel=0.01)
    assert [response.seconds for response in record.slowest] == [10.0, 0.5, 0.1, 0.1, 0.1]
    assert record.failures == 1
