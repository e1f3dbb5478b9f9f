"""Attention as products and a Softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.lowerings.lowered_graphs import exported
from xarch.export.lowerings.sdpa import sdpa
from xarch.export.profiles import npu

MASK = torch.tril(torch.ones(6, 6), 2).bool()
MASK[:, 3] = False
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": MASK},
    "added": {"attn_mask": torch.randn(6, 6, generator=torch.Generator().manual_seed(0))},
    "scale": {"scale": 0.2},
}


class Attention(nn.Module):
    def __init__(self, **form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q * 2, q + 1, **self.form)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_attention_in_every_form_fits_an_accelerator(form: dict[str, Any], tmp_path: Path) -> None:
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    used, off = exported(Attention(**form), x, npu, tmp_path)
    assert not {"IsNaN", "Where"} & used
    assert off < 1e-6


def test_grouped_keys() -> None:
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    seen = sdpa(q, k, v, enable_gqa=True)
    assert torch.allclose(seen, F.scaled_dot_product_attention(q, k, v, enable_gqa=True), atol=1e-6)
