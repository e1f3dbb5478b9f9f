"""Quality gates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xarch.config.schema import Gate
from xarch.errors import UsageError
from xarch.run.gates import GateResult, check


@pytest.mark.parametrize(
    ("gate", "value", "passed", "limit"),
    [
        (Gate(max=1.1), 1.1, True, "<= 1.1"),
        (Gate(max=1.1), 1.11, False, "<= 1.1"),
        (Gate(min=0.8), 0.8, True, ">= 0.8"),
        (Gate(min=0.8), 0.79, False, ">= 0.8"),
        (Gate(min=0.1, max=0.2), 0.15, True, ">= 0.1 and <= 0.2"),
        (Gate(min=0.1, max=0.2), 0.3, False, ">= 0.1 and <= 0.2"),
        (Gate(), 5.0, True, "any number"),
        (Gate(), math.nan, False, "any number"),
        (Gate(max=1.0), math.inf, False, "<= 1"),
        (Gate(max=1.0), math.nan, False, "<= 1"),
    ],
)
def test_limits(gate: Gate, value: float, passed: bool, limit: str) -> None:
    [result] = check({"kl": value}, {"kl": gate})
    assert (result.name, result.passed, result.limit) == ("kl", passed, limit)


def test_an_unknown_figure_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'perplexity_ratio'") as caught:
        check({"kl": 0.1, "perplexity_ratio": 1.0}, {"perplexity_rato": Gate(max=1.1)})
    assert "kl, perplexity_ratio" in str(caught.value.hint)


def test_no_gates_no_results() -> None:
    assert check({"kl": 0.1}, {}) == []


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.floats(allow_nan=True), FINITE, FINITE)
def test_passing_means_being_within(value: float, low: float, high: float) -> None:
    [result] = check({"x": value}, {"x": Gate(min=low, max=high)})
    assert isinstance(result, GateResult)
    assert result.passed == (low <= value <= high)
