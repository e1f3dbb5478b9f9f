"""The causal convolution in Triton kernels: every input and output passes memory once.

Legend: B batch, L tokens, C channels, K taps, J = K - 1, U tokens with those before the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.causal_conv1d.naive import causal_conv1d_naive
from xarch.kernels.causal_conv1d.plain import causal_conv1d_plain
from xarch.kernels.causal_conv1d.window import final_state, prepend
from xarch.kernels.dispatch import register
from xarch.kernels.gpu import TOLERANCE, rows_last, why_not_triton
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves

_BLOCK = {"BT": 64, "BC": 64}


@register(
    "causal_conv1d",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_triton,
    check=lambda device: check(causal_conv1d_triton, device),
)
def causal_conv1d_triton(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    *,
    initial_state_BCJ: Tensor | None,
    segment_ids_BL: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments and results of :func:`xarch.kernels.causal_conv1d`; the state is None unless asked for.

    Calls with a float64 operand or no element run in PyTorch.
    """
    if (
        island_dtype(x_BLC, weight_CK) == torch.float64
        or x_BLC.numel() == 0
    ):  # fmt: skip
        return causal_conv1d_plain(
            x_BLC,
            weight_CK,
            bias_C,
            initial_state_BCJ=initial_state_BCJ,
            segment_ids_BL=segment_ids_BL,
            return_final_state=return_final_state,
        )
    taps = weight_CK.shape[1]
    state_BCJ = final_state(x_BLC, initial_state_BCJ, taps, segment_ids_BL) if return_final_state else None
    run_BU = None if segment_ids_BL is None else runs(segment_ids_BL)
    x_BUC, lead = x_BLC, 0
    if initial_state_BCJ is not None:
        x_BUC, run_BU = prepend(x_BLC, initial_state_BCJ, taps, run_BU)
        lead = taps - 1
    run_BU = None if run_BU is None else run_BU.int().contiguous()
    bias_C = None if bias_C is None else bias_C.contiguous()
    return torch.ops.xarch.causal_conv1d_triton_forward(x_BUC, weight_CK, bias_C, run_BU, lead), state_BCJ


@torch.library.custom_op(
    "xarch::causal_conv1d_triton_forward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? run, int lead) -> Tensor",
)
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, run: Tensor | None, lead: int) -> Tensor:
    from xarch.kernels.causal_conv1d.triton_kernels import forward_kernel

    x = rows_last(x)
    batch, inputs, channels = x.shape
    y = x.new_empty(batch, inputs - lead, channels)
    grid = (-(-y.shape[1] // _BLOCK["BT"]), -(-channels // _BLOCK["BC"]), batch)
    forward_kernel[grid](
        x, weight, weight if bias is None else bias, weight if run is None else run, y, y.shape[1], channels, lead,
        *x.stride()[:2], *weight.stride(),
        HAS_BIAS=bias is not None, HAS_RUN=run is not None, TAPS=weight.shape[1], **_BLOCK,
    )  # fmt: skip
    return y


@torch.library.custom_op(
    "xarch::causal_conv1d_triton_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor weight, Tensor? run, int lead) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, run: Tensor | None, lead: int
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from xarch.kernels.causal_conv1d.triton_kernels import backward_kernel

    dy, x = rows_last(dy), rows_last(x)
    batch, inputs, channels = x.shape
    taps = weight.shape[1]
    blocks = -(-inputs // _BLOCK["BT"])
    dx = x.new_empty(x.shape)
    sums = x.new_empty(batch, blocks, taps + 1, channels, dtype=torch.float32)
    backward_kernel[(blocks, -(-channels // _BLOCK["BC"]), batch)](
        dy, x, weight, weight if run is None else run, dx, sums, inputs - lead, channels, lead,
        *dy.stride()[:2], *x.stride()[:2], *weight.stride(),
        HAS_RUN=run is not None, TAPS=taps, **_BLOCK,
    )  # fmt: skip
    total = sums.sum((0, 1))
    return dx, total[:-1].t().contiguous(), total[-1].clone()


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Any, run: Any, lead: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - lead, x.shape[2])


@_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, run: Any, lead: int) -> tuple[Tensor, Tensor, Tensor]:
    dweight = weight.new_empty(weight.shape, dtype=torch.float32)
    return x.new_empty(x.shape), dweight, dweight.new_empty(weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, run, ctx.lead = inputs
    ctx.save_for_backward(x, weight, run)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, run = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.xarch.causal_conv1d_triton_backward(dy, x, weight, run, ctx.lead)
    return dx, dweight.to(weight.dtype), None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def check(run: Callable[..., Any], device: str) -> None:
    """Compare a GPU backend with the naive one on a device type: several blocks, documents.

    Raises:
        SelfCheckError: they differ.
    """
    segments_BL = (torch.arange(260, device=device) // 220).expand(2, -1)

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
            options = {"initial_state_BCJ": None, "segment_ids_BL": segments_BL, "return_final_state": False}
            return [function(x, weight, bias, **options)[0]]

        return outputs

    operands = [waves(*shape, phase=i, device=device) for i, shape in enumerate([(2, 260, 72), (72, 4), (72,)])]
    agree(call(run), call(causal_conv1d_naive), operands, tolerance=TOLERANCE)
