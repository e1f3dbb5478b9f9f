"""Sine, cosine and the place of the smallest element in operators that accelerators have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.export.lowerings.lowered_graphs import exported
from xarch.export.lowerings.argmin import argmin
from xarch.export.lowerings.waves import cos, sin
from xarch.export.profiles import cpu, npu

X = torch.cat([torch.linspace(-20, 20, 4001), torch.arange(0.0, 8192.0, 7.0)])


def test_they_are_sine_and_cosine_of_small_and_large_angles() -> None:
    for made, known in ((cos, torch.cos), (sin, torch.sin)):
        assert float((made(X).double() - known(X.double())).abs().max()) <= 1e-6


def test_argmin_takes_the_first_of_equal_elements() -> None:
    x = torch.randint(0, 4, (5, 3, 9)).float()
    assert torch.equal(argmin(x, -1), x.argmin(-1))
    assert torch.equal(argmin(x, 1, keepdim=True), x.argmin(1, keepdim=True))


class Functions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + torch.cos(x) + (x.argmin(-1, keepdim=True) == 2).float()


def test_a_module_leaves_without_them_unless_the_profile_has_them(tmp_path: Path) -> None:
    x = X[None, :64].reshape(4, 16)
    used, off = exported(Functions(), x, npu, tmp_path)
    assert not {"Sin", "Cos", "ArgMin"} & set(used)
    assert off < 1e-6
    assert {"Sin", "Cos", "ArgMin"} <= set(exported(Functions(), x, cpu, tmp_path)[0])
