"""The statistics that experiments need, based on mpmath's special functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from statistics import fmean

import mpmath

# Pearson's test is an approximation that is good enough if each face is expected at least about this often.
MIN_EXPECTED = 5


@dataclass(frozen=True)
class ChiSquare:
    """The result of Pearson's chi-square test; ``p`` is from 0 to 1."""

    statistic: float
    degrees: int
    p: float


def chi_square(counts: Mapping[int, int], faces: Sequence[int]) -> ChiSquare | None:
    """Test counts against a die whose faces are equally likely.

    Args:
        counts: how often each face came up.
        faces: the die's faces; one that is listed twice is twice as likely.

    Returns:
        ``None`` if there are too few rolls or too few different faces for the test.
    """
    rolls = sum(counts.values())
    if not counts.keys() <= set(faces):  # a face that the die does not have
        return ChiSquare(math.inf, len(set(faces)) - 1, 0.0)
    expected = {face: float(rolls * Fraction(faces.count(face), len(faces))) for face in set(faces)}
    if len(expected) < 2 or min(expected.values()) < MIN_EXPECTED:
        return None
    statistic = sum((counts.get(face, 0) - count) ** 2 / count for face, count in expected.items())
    degrees = len(expected) - 1
    p = float(mpmath.gammainc(degrees / 2, statistic / 2, regularized=True))
    return ChiSquare(statistic, degrees, p)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution for a probability from 0.5 to 1, exclusive."""
    tail = 2 * (1 - probability)
    # P(|T| > t) is the regularised incomplete beta function at degrees / (degrees + t²).
    low, high = 0.0, 1.0
    while _t_tail(high, degrees) > tail:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, degrees) > tail else (low, middle)
    return high


def _t_tail(t: float, degrees: int) -> float:
    return float(mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True))


@dataclass(frozen=True)
class Ratio:
    """The ratio of two means with its confidence interval; without bounds if there are too few values."""

    value: float
    low: float | None
    high: float | None


def ratio_of_means(above: Sequence[float], below: Sequence[float], confidence: float = 0.95) -> Ratio:
    """The mean of ``above`` over that of ``below``, with Fieller's interval for paired values.

    Fieller, E. C.: Some problems in interval estimation (1954). The interval holds every ratio r for which a
    t test would not distinguish the mean of ``above - r · below`` from zero.
    """
    n = len(above)
    mean_above, mean_below = fmean(above), fmean(below)
    value = mean_above / mean_below
    if n < 3:
        return Ratio(value, None, None)
    t2 = t_quantile((1 + confidence) / 2, n - 1) ** 2 / n
    # The roots of a r² - 2 b r + c
    a = mean_below**2 - t2 * _covariance(below, below)
    b = mean_above * mean_below - t2 * _covariance(above, below)
    c = mean_above**2 - t2 * _covariance(above, above)
    if a <= 0 or b * b < a * c:  # the mean below may be zero: the interval is unbounded
        return Ratio(value, None, None)
    spread = math.sqrt(b * b - a * c)
    return Ratio(value, (b - spread) / a, (b + spread) / a)


def _covariance(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = fmean(left), fmean(right)
    return sum((x - mean_left) * (y - mean_right) for x, y in zip(left, right, strict=True)) / (len(left) - 1)


def expected_speedup(rolls: int) -> float:
    """The speed-up of a batch of ``rolls``, each of which waits a uniform random time from 0 to d.

    One after the other the waits add up, to ``rolls · d / 2`` on average. A batch takes as long as its longest wait,
    which is ``d · rolls / (rolls + 1)`` on average.
    """
    return (rolls + 1) / 2
