"""Views of more dimensions than a profile allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.export.lowerings.lowered_graphs import exported
from xarch.errors import PlanError
from xarch.export.lowerings.rank import grouped
from xarch.export.profiles import npu


class Called(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def fused(x: Tensor, how: str) -> Tensor:
    """q kᵀ v of a fused projection [B, N, 3 * heads * width], taken apart in one of the ways people write it."""
    batch, tokens, _ = x.shape
    parts = x.reshape(batch, tokens, 3, 2, 8)
    if how == "permute and unbind":
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    elif how == "permute and index":
        parts = parts.permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
    elif how == "unbind and transpose":
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
    else:
        q, k, v = (part.squeeze(2).transpose(1, 2) for part in parts.split(1, dim=2))
    return q @ k.transpose(-2, -1) @ v


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "how", ["permute and unbind", "permute and index", "unbind and transpose", "split and squeeze"]
)
def test_fused_projections_stay_at_rank_four(how: str, batch: int, tmp_path: Path) -> None:
    """vision 2.12: rank 5 of nearly every vision transformer."""
    x = torch.randn(batch, 5, 48, generator=torch.Generator().manual_seed(0))
    assert exported(Called(lambda x: fused(x, how)), x, npu, tmp_path)[1] < 1e-6


def windows(x: Tensor) -> Tensor:
    """[B, H, W, C] to windows of 2 x 3 and their sums, and back."""
    b, h, w, c = x.shape
    cut = x.view(b, h // 2, 2, w // 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, c)
    cut = cut + cut.sum(1, keepdim=True)
    return cut.view(b, h // 2, w // 3, 2, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


def test_windows_of_six_axes(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    assert exported(Called(windows), x, npu, tmp_path)[1] < 1e-6


def test_neighbours_count_as_one() -> None:
    assert grouped([2, 3, 4, 5, 6], [0, 1, 3, 2, 4]) == ([6, 4, 5, 6], [0, 2, 1, 3])
    assert grouped([1, 3, 4, 5], [2, 0, 1, 3]) == ([3, 4, 5], [1, 0, 2])


def test_arithmetic_of_high_rank_names_module_and_line(tmp_path: Path) -> None:
    """vision 2.12: an error says which module it is, not `view_1`."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Called(lambda x: torch.sinh(x.view(1, 2, 2, 2, 2)).flatten())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 1

    with pytest.raises(PlanError) as caught:
        exported(Outer(), torch.randn(16), npu, tmp_path)
    assert "5 dimensions, at most 4 (inner, lowerings/test_lowering_rank.py:" in caught.value.what
    assert "operator Sinh is not in the profile (inner, lowerings/" in caught.value.what
