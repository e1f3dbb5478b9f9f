"""The convolution in blocks of tokens that stay in cache, plain PyTorch, with a hand-written backward pass.

The inputs keep their [B, L, C] layout: two to four times faster on a CPU than transposing for ``conv1d``.

Legend: B batch, L tokens, C channels, K taps, J = K - 1, U tokens with those before the first one, T tokens of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.causal_conv1d.window import final_state, prepend
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype, tracing, without_autocast
from xarch.kernels.segments import runs

_CACHE_ELEMENTS = 1 << 16
"""On a CPU a block has about so many elements, so that a few of them fit the level-2 cache."""


@register("causal_conv1d", "torch", priority=10)
def causal_conv1d_plain(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    *,
    initial_state_BCJ: Tensor | None,
    segment_ids_BL: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments and results of :func:`xarch.kernels.causal_conv1d`; the state is None unless asked for."""
    taps = weight_CK.shape[1]
    dtype = island_dtype(x_BLC, weight_CK)
    weight_CK = weight_CK.to(dtype)
    bias_C = None if bias_C is None else bias_C.to(dtype)
    state_BCJ = final_state(x_BLC, initial_state_BCJ, taps, segment_ids_BL) if return_final_state else None
    if tracing() and segment_ids_BL is None:
        extended, _ = prepend(x_BLC, initial_state_BCJ, taps, None)
        y_BCL = F.conv1d(extended.transpose(1, 2).to(dtype), weight_CK[:, None], bias_C, groups=weight_CK.shape[0])
        return y_BCL.transpose(1, 2).to(x_BLC.dtype), state_BCJ
    run_BU = None if segment_ids_BL is None else runs(segment_ids_BL)
    x_BUC, lead = x_BLC, 0
    if initial_state_BCJ is not None:
        x_BUC, run_BU = prepend(x_BLC, initial_state_BCJ, taps, run_BU)
        lead = taps - 1
    return _Conv.apply(x_BUC, weight_CK, bias_C, run_BU, lead), state_BCJ


class _Conv(torch.autograd.Function):
    """``lead`` inputs come before the first output; everything before them is zero."""

    @staticmethod
    def forward(
        ctx: Any, x_BUC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, run_BU: Tensor | None, lead: int
    ) -> Tensor:
        ctx.save_for_backward(x_BUC, weight_CK, bias_C, run_BU)
        ctx.lead = lead
        weight_KC = weight_CK.t().contiguous()
        taps, length = weight_KC.shape[0], x_BUC.shape[1] - lead
        y_BLC = torch.empty_like(x_BUC[:, lead:])
        for block in _blocks(x_BUC, length):
            y_BTC = _reached(x_BUC, run_BU, lead, block, 0, weight_CK.dtype) * weight_KC[-1]
            if bias_C is not None:
                y_BTC += bias_C
            for j in range(1, taps):
                # The first tokens have no input j tokens back.
                start = max(block.start, j - lead)
                if start < block.stop:
                    reached_BTC = _reached(x_BUC, run_BU, lead, slice(start, block.stop), j, weight_CK.dtype)
                    y_BTC[:, start - block.start :].addcmul_(reached_BTC, weight_KC[taps - 1 - j])
            y_BLC[:, block] = y_BTC
        return y_BLC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BUC, weight_CK, bias_C, run_BU = ctx.saved_tensors
        (dy_BLC,) = grads
        with without_autocast(x_BUC.device):
            dx_BUC, dweight_CK, dbias_C = _backward(dy_BLC, x_BUC, weight_CK, run_BU, ctx.lead)
        return dx_BUC, dweight_CK, None if bias_C is None else dbias_C, None, None


def _backward(
    dy_BLC: Tensor, x_BUC: Tensor, weight_CK: Tensor, run_BU: Tensor | None, lead: int
) -> tuple[Tensor, Tensor, Tensor]:
    weight_KC = weight_CK.t().contiguous()
    taps, (length, channels) = weight_KC.shape[0], dy_BLC.shape[1:]
    dx_BUC = torch.empty_like(x_BUC)
    dweight_KC = torch.zeros_like(weight_KC)
    dbias_C = weight_KC.new_zeros(channels)
    for block in _blocks(x_BUC, x_BUC.shape[1]):
        x_BTC = x_BUC[:, block].to(weight_CK.dtype)
        dx_BTC = torch.zeros_like(x_BTC)
        for j in range(taps):
            # Input u reaches output u - lead + j.
            outputs = slice(max(block.start - lead + j, 0), min(block.stop - lead + j, length))
            if outputs.start >= outputs.stop:
                continue
            dy_BTC = dy_BLC[:, outputs].to(weight_CK.dtype)
            if run_BU is not None and j > 0:
                dy_BTC = dy_BTC * _same(run_BU, lead, outputs, j)
            inputs = slice(outputs.start + lead - j - block.start, outputs.stop + lead - j - block.start)
            dx_BTC[:, inputs].addcmul_(dy_BTC, weight_KC[taps - 1 - j])
            dweight_KC[taps - 1 - j] += (dy_BTC * x_BTC[:, inputs]).sum((0, 1))
            if j == 0:
                dbias_C += dy_BTC.sum((0, 1))
        dx_BUC[:, block] = dx_BTC
    return dx_BUC, dweight_KC.t(), dbias_C


def _blocks(x_BUC: Tensor, length: int) -> list[slice]:
    batch, _, channels = x_BUC.shape
    size = max(length, 1)
    if x_BUC.device.type == "cpu":
        size = max(16, _CACHE_ELEMENTS // max(batch * channels, 1))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _reached(x_BUC: Tensor, run_BU: Tensor | None, lead: int, where: slice, j: int, dtype: torch.dtype) -> Tensor:
    """Inputs j tokens before the outputs ``where``, zero if they belong to another document."""
    x_BTC = x_BUC[:, where.start + lead - j : where.stop + lead - j].to(dtype)
    if run_BU is not None and j > 0:
        x_BTC = x_BTC * _same(run_BU, lead, where, j)
    return x_BTC


def _same(run_BU: Tensor, lead: int, where: slice, j: int) -> Tensor:
    now_BT = run_BU[:, where.start + lead : where.stop + lead]
    then_BT = run_BU[:, where.start + lead - j : where.stop + lead - j]
    return (now_BT == then_BT)[:, :, None]
