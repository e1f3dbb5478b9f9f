"""Costs that are counted on the meta device are those of the real computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xarch.planning import trace
from xarch.planning.trace import Cost, TooLong, Trace


def step(device: str, samples: int = 8) -> Trace:
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
    x = torch.zeros(samples, 16, device=device)
    made = Trace([*module.parameters(), x])
    with made.recording():
        module(x).square().sum().backward()
    return made


def test_products_activations_and_operators() -> None:
    cost = step("meta").cost
    first, second = 8 * 16 * 32, 8 * 32 * 4
    # Forward, gradient of the weights, and gradient of the input but for the first layer.
    assert cost.products == 2 * first + 3 * second
    hidden, output = 8 * 32 * 4, 8 * 4 * 4
    assert cost.saved == hidden + output
    assert cost.operators > 10
    real = step("cpu").cost
    assert (real.products, real.saved) == (cost.products, cost.saved)


def test_costs_one_after_the_other_share_memory_and_add_work() -> None:
    total = Cost(saved=5, products=1.0, operators=2).plus(Cost(saved=3, products=2.0, operators=1), times=3)
    assert (total.saved, total.products, total.operators) == (5, 7.0, 5)


def test_a_long_trace_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "SECONDS", -1.0)
    with pytest.raises(TooLong):
        step("meta")
