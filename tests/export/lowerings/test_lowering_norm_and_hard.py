"""Layer normalisation and hard activations where their operators are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.export.lowerings.lowered_graphs import exported
from xarch.export.profiles import npu

OLD = {"LayerNormalization", "HardSwish", "HardSigmoid"}
BARE = replace(npu, name="bare", allowed_ops=(npu.allowed_ops or frozenset()) - OLD)


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(16),
        nn.LayerNorm((3, 16), eps=1e-3),
        nn.LayerNorm(16, elementwise_affine=False),
        nn.Hardswish(),
        nn.Hardswish(inplace=True),
        nn.Hardsigmoid(),
    ],
    ids=lambda m: str(m).partition("\n")[0],
)
def test_what_a_bare_profile_lacks_is_written_out(module: nn.Module, tmp_path: Path) -> None:
    for p in module.parameters():
        nn.init.normal_(p)
    x = 4 * torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    used, off = exported(module, x.clone(), BARE, tmp_path)
    assert not OLD & used
    assert off < 1e-6


def test_a_profile_asks_for_a_lowering_by_name(tmp_path: Path) -> None:
    module, x = nn.LayerNorm(16), torch.randn(2, 16)
    assert "LayerNormalization" in exported(module, x, npu, tmp_path)[0]
    asks = replace(npu, lowerings=("layer-norm",))
    assert "LayerNormalization" not in exported(module, x, asks, tmp_path)[0]
