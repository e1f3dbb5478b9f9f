"""GELU without Erf."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.lowerings.lowered_graphs import exported
from xarch.export import lowerings
from xarch.export.lowerings.erf import erf, gelu
from xarch.export.profiles import cpu, npu

X = torch.cat([torch.linspace(-8, 8, 4001), torch.linspace(-1e-3, 1e-3, 101), torch.tensor([0.0, -40, 40])])


def test_it_is_the_error_function_to_2e_7() -> None:
    """vision 2.12: exact GELU for accelerators without Erf."""
    assert float((erf(X).double() - torch.erf(X.double())).abs().max()) <= 2e-7
    wanted = F.gelu(X.double())
    assert float(((gelu(X).double() - wanted).abs() / wanted.abs().clamp(1)).max()) <= 3e-7


class Function(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) + x.erf() + F.gelu(x)


@pytest.mark.slow
@pytest.mark.parametrize("module", [nn.GELU(), Function(), nn.GELU("tanh")], ids=["module", "functions", "tanh"])
def test_modules_and_functions_leave_without_erf(module: nn.Module, tmp_path: Path) -> None:
    used, off = exported(module, X[None, ::2], npu, tmp_path)
    assert "Erf" not in used
    assert off < 3e-7


def test_a_profile_that_has_erf_keeps_it(tmp_path: Path) -> None:
    assert "Erf" in exported(nn.GELU(), X[1500:2500], cpu, tmp_path)[0]


def test_apply_gives_the_same_module_in_torch() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU()).requires_grad_(False)
    lowered = lowerings.apply(net, npu)
    x = torch.randn(3, 4)
    assert torch.allclose(lowered(x), net(x), atol=1e-6)
    assert not torch.equal(lowered(x * 3), net(x * 3)), "it takes the other way"
    assert next(lowered.parameters()) is net[0].weight
    assert lowerings.apply(net, cpu) is net
