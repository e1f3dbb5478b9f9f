"""Schedules as functions of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from xarch.engine.schedule import lr_factor, match_weight

from xarch.config.schema import Optimiser, WeightSchedule


def test_wsd_rises_stays_and_falls() -> None:
    optimiser = Optimiser(schedule="wsd", warmup=0.1, decay=0.3)
    factors = [lr_factor(i, 100, optimiser) for i in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:70] == [1.0] * 61
    assert all(a > b for a, b in pairwise(factors[70:]))
    assert 0 < factors[-1] < 0.05


def test_cosine_ends_at_its_final_value() -> None:
    optimiser = Optimiser(schedule="cosine", warmup=0.0, final=0.1)
    assert lr_factor(99, 100, optimiser) == pytest.approx(0.1)
    assert lr_factor(0, 100, optimiser) == pytest.approx(1.0, abs=1e-3)


def test_one_step_stage_trains_at_a_positive_rate() -> None:
    for schedule in ("wsd", "cosine", "constant"):
        assert lr_factor(0, 1, Optimiser(schedule=schedule)) > 0


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
def test_weights_run_from_start_to_end(shape: str) -> None:
    schedule = WeightSchedule(start=2.0, end=0.5, shape=shape)
    values = [match_weight(schedule, i, 11) for i in range(11)]
    assert values[0] == pytest.approx(2.0)
    assert values[-1] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)
