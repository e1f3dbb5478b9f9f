"""The t-test against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xarch.run.study.significance import deviation, paired, t_quantile, t_two_sided


@pytest.mark.parametrize("df", [1, 2, 4, 30, 500])
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 2.0, 12.0, 80.0])
def test_tails(t: float, df: int) -> None:
    assert t_two_sided(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-10)


@pytest.mark.parametrize("df", [1, 2, 7, 100])
def test_quantile(df: int) -> None:
    assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired(n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n))
    found, wanted = paired(list(a - b)), stats.ttest_rel(a, b)
    assert found is not None
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)), rel=1e-9)


def test_one_pair_has_no_test_and_equal_differences_no_spread() -> None:
    one = paired([0.5])
    assert one is not None
    assert (one.mean, one.p) == (0.5, None)
    same, none = paired([0.1, 0.1, 0.1]), paired([0.0, 0.0])
    assert same is not None
    assert none is not None
    assert (same.p, none.p) == (0.0, 1.0)
    assert paired([]) is None
    assert deviation([1.0]) is None
