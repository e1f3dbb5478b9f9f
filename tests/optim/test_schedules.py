"""Learning rates: the curves of earlier runs to the last bit, and torch's own where it has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from xarch.optim import LearningRate
from xarch.registry.loader import get_registry


def rate(name: str, warmup: float = 0.1, final: float = 0.0, **options: Any) -> LearningRate:
    schedule = get_registry().create("schedule", name)
    return LearningRate(schedule, schedule.Options.model_validate(options), warmup, final)


def curve(of: LearningRate, steps: int) -> list[float]:
    return [of.factor(step, steps) for step in range(steps)]


def earlier(step: float, steps: int, schedule: str, warmup: float, decay: float, final: float) -> float:
    """The rule before schedules were registered, written out."""
    warm = math.ceil(warmup * steps)
    if step < warm:
        return min((step + 1) / warm, 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        at = (step - warm + 1) / max(steps - warm, 1)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(at, 1.0)))
    down = max(math.ceil(decay * steps), 1)
    left = steps - step
    return 1.0 if left > down else final + (1 - final) * left / (down + 1)


@pytest.mark.parametrize("name", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 7, 100, 999])
@pytest.mark.parametrize(
    ("warmup", "decay", "final"), [(0.1, 0.3, 0.0), (0.02, 0.4, 0.2), (0.0, 0.0, 0.03), (0.1, 1.0, 0)]
)
def test_curves_of_earlier_runs_are_kept(name: str, steps: int, warmup: float, decay: float, final: float) -> None:
    options = {} if name == "constant" else {"decay": decay}
    got = curve(rate(name, warmup, final, **options), steps)
    assert got == [earlier(step, steps, name, warmup, decay, final) for step in range(steps)]
    assert all(0 < value <= 1 for value in got[:-1])


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear", "polynomial", "step", "constant"])
def test_between_two_steps_it_lies_between_them(name: str) -> None:
    found = rate(name)
    for step in range(99):
        a, b = found.factor(step, 100), found.factor(step + 1, 100)
        assert min(a, b) - 1e-12 <= found.factor(step + 0.5, 100) <= max(a, b) + 1e-12


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomials_are_those_of_torch(power: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=50, power=power)
    mine = rate("polynomial", warmup=0.0, power=power) if power > 1 else rate("linear", warmup=0.0)
    for step in range(50):
        optimiser.step()
        theirs.step()
        assert mine.factor(step, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)


def test_milestones_are_those_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, [60, 80], gamma=0.2)
    mine = rate("step", warmup=0.0, milestones=[0.6, 0.8], gamma=0.2)
    for step in range(100):
        assert mine.factor(step, 100) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_the_end_is_final() -> None:
    for name in ("cosine", "linear", "polynomial"):
        assert rate(name, final=0.25).factor(99, 100) == pytest.approx(0.25)
    assert rate("step", final=0.25, milestones=[0.2, 0.4, 0.6]).factor(99, 100) == 0.25


def test_where_an_early_end_goes_on() -> None:
    assert rate("wsd", decay=0.3).falls_at(100) == 70
    assert rate("cosine").falls_at(100) == 100
    assert rate("wsd", decay=0.2).decay_share == 0.2
    assert rate("wsd", decay=1.0).decay_share is None
    assert rate("constant").decay_share == 0.0


@pytest.mark.parametrize("shares", [[0.8, 0.6], [0.5, 0.5], [0.0, 0.5], [0.5, 1.0], [30, 60]])
def test_milestones_are_rising_shares(shares: list[float]) -> None:
    with pytest.raises(ValidationError, match="rising order"):
        rate("step", milestones=shares)


def test_an_option_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValidationError, match="power"):
        rate("cosine", power=2.0)
