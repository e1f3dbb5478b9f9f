"""Blocked attention against scores written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plugins.hf.hf_models import probabilities
from xarch_decoder.factored import AttentionFactors
from xarch_decoder.model.decoder import make_sequence
from xarch_hf import attention
from xarch_hf.attention import causal_attention, visible


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BLOCK, "cpu", 8)


def packed(rows: int, length: int) -> Tensor:
    fresh = torch.rand(rows, length, generator=torch.Generator().manual_seed(3)) < 0.15
    return fresh.cumsum(1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [1, 8, 29])
def test_equals_scores_written_out(length: int, segmented: bool, window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, length, 6, 4), torch.randn(2, length, 2, 4), torch.randn(2, length, 2, 4)
    segments = packed(2, length) if segmented else None
    sequence = make_sequence(torch.zeros(2, length, dtype=torch.int64), segments)
    seen = visible(sequence.positions_BL, segmented, window)
    heads = causal_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale=0.7, seen=seen, softcap=softcap).transpose(
        1, 2
    )
    matrix = probabilities(AttentionFactors(q, k, 0.7, window, softcap, segments))
    wanted = torch.einsum("bhls,bshe->blhe", matrix, v.repeat_interleave(3, 2))
    assert torch.allclose(heads, wanted, atol=1e-5)


def test_whole_rows_need_no_mask() -> None:
    positions = torch.arange(10).expand(2, 10)
    assert visible(positions, False, None) is None
    assert visible(positions, False, 10) is None
    assert visible(positions, False, 9) is not None


class Largest(TorchDispatchMode):
    """Elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("segmented", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length(segmented: bool) -> None:
    length = 4096
    q, k, v = torch.randn(1, 2, length, 8), torch.randn(1, 1, length, 8), torch.randn(1, 1, length, 8)
    segments = packed(1, length) if segmented else None
    sequence = make_sequence(torch.zeros(1, length, dtype=torch.int64), segments)
    with Largest() as largest:
        causal_attention(q, k, v, scale=1.0, seen=visible(sequence.positions_BL, segmented, None))
    assert largest.elements <= max(q.numel(), attention.block(q.device) * length)
    assert largest.elements < length * length / 4
