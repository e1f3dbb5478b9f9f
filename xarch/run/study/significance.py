"""Means, deviations and paired t-tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """The difference between an arm and its control over their common seeds.

    Attributes:
        n: number of pairs.
        mean: mean of the differences.
        low, high: 95 % confidence interval of the mean; None with fewer than two pairs.
        p: two-sided p-value of the paired t-test; None with fewer than two pairs.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired(differences: Sequence[float]) -> Paired | None:
    """Return the paired t-test of differences; None if there are none."""
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    if n == 1:
        return Paired(n, mean)
    error = statistics.stdev(differences) / math.sqrt(n)
    # Differences equal up to rounding have no spread to test against.
    if error <= 1e-12 * max(abs(mean), 1e-300):
        return Paired(n, mean, mean, mean, 0.0 if mean else 1.0)
    half = t_quantile(0.975, n - 1) * error
    return Paired(n, mean, mean - half, mean + half, t_two_sided(mean / error, n - 1))


def t_two_sided(t: float, df: float) -> float:
    """Return the probability that |T| >= |t| for Student's t with ``df`` degrees of freedom."""
    # 1 - x is not computed from x, which would lose precision for small t.
    if t * t < df:
        return 1 - incomplete_beta(0.5, df / 2, t * t / (df + t * t))
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


def t_quantile(probability: float, df: float) -> float:
    """Return the t with P(T <= t) = ``probability``, for probabilities in (0.5, 1)."""
    tail = 2 * (1 - probability)
    high = 1.0
    while t_two_sided(high, df) > tail:
        high *= 2
    low = 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, df) > tail else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    # The fraction converges fast only below the mean; above it, use the complement.
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * fraction / a
