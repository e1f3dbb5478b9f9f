"""The distance in Triton kernels: memory linear in L, the teacher's exponentials beside the tensor cores.

With one B/C group per head the rows' half of the gradient is formed in the forward pass, while the tiles are at hand,
and the backward pass only visits the columns.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import TOLERANCE, why_not_triton
from xarch.kernels.matrix_distance.naive import matrix_distance_naive
from xarch.kernels.matrix_distance.plain import matrix_distance_plain
from xarch.kernels.matrix_distance.result import MatrixDistance
from xarch.kernels.precision import LOG_FLOOR, island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves

LARGEST = 256
"""Wider heads and larger states do not fit the registers of a program."""


@register(
    "matrix_distance",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_triton,
    check=lambda device: check(matrix_distance_triton, device),
)
def matrix_distance_triton(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    segment_ids_BL: Tensor | None,
    mask_BL: Tensor | None,
    tile: tuple[int, int],
) -> MatrixDistance:
    """Arguments and results of :func:`xarch.kernels.matrix_distance`; ``tile`` is left to the kernels.

    Calls with a float64 operand, no element, or more than :data:`LARGEST` values per head or state run in PyTorch.
    """
    wide = island_dtype(q_BLHE, C_BLGN, B_BLGN, log_a_BLH, D_H) == torch.float64
    wide = wide or max(q_BLHE.shape[-1], C_BLGN.shape[-1]) > LARGEST
    if wide or 0 in (*q_BLHE.shape, C_BLGN.shape[-1]):
        return matrix_distance_plain(
            q_BLHE, k_BLKE, C_BLGN, B_BLGN, log_a_BLH, D_H, scale=scale, window=window, softcap=softcap,
            segment_ids_BL=segment_ids_BL, mask_BL=mask_BL, tile=tile,
        )  # fmt: skip
    start, stop = (None, None) if segment_ids_BL is None else _borders(segment_ids_BL)
    real = None if mask_BL is None else mask_BL.to(torch.uint8).contiguous()
    operands = [C_BLGN, B_BLGN, log_a_BLH, None if D_H is None else D_H.contiguous()]
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    at_once = wanted and C_BLGN.shape[2] == log_a_BLH.shape[2]
    error_BH, teacher_BH, *_ = torch.ops.xarch.matrix_distance_triton_forward(
        *operands, q_BLHE, k_BLKE, start, stop, real, scale, window, softcap, at_once
    )
    return MatrixDistance(error_BH, teacher_BH.detach())


def _borders(segment_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """First token of the document of each token, and the first one after it, int32 [B, L]."""
    run_BL = runs(segment_ids_BL).contiguous()
    return torch.searchsorted(run_BL, run_BL).int(), torch.searchsorted(run_BL, run_BL, right=True).int()


def _prefix(log_a_BLH: Tensor) -> Tensor:
    """S [B, H, L] in float64: in float32, differences far from the first token lose the digits of single steps."""
    return log_a_BLH.double().clamp(min=LOG_FLOOR).cumsum(1).transpose(1, 2).contiguous()


@torch.library.custom_op(
    "xarch::matrix_distance_triton_forward",
    mutates_args=(),
    schema="(Tensor C, Tensor B, Tensor log_a, Tensor? D, Tensor q, Tensor k, Tensor? start, Tensor? stop,"
    " Tensor? real, float scale, int? window, float? softcap, bool at_once)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    C: Tensor, B: Tensor, log_a: Tensor, D: Any, q: Tensor, k: Tensor, start: Any, stop: Any, real: Any,
    scale: float, window: int | None, softcap: float | None, at_once: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    from xarch.kernels.matrix_distance import triton_launch

    call = triton_launch.Call(q, k, C, B, D, _prefix(log_a), start, stop, real, scale, window, softcap)
    error, teacher, lse, dC, dS, dD = triton_launch.forward(call, at_once)
    return error.sqrt(), teacher.sqrt(), lse, dC, dS, dD


@torch.library.custom_op(
    "xarch::matrix_distance_triton_backward",
    mutates_args=(),
    schema="(Tensor factor, Tensor C, Tensor B, Tensor log_a, Tensor? D, Tensor q, Tensor k, Tensor? start,"
    " Tensor? stop, Tensor? real, float scale, int? window, float? softcap, Tensor lse, Tensor? dC, Tensor? dS,"
    " Tensor? dD) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    factor: Tensor, C: Tensor, B: Tensor, log_a: Tensor, D: Any, q: Tensor, k: Tensor, start: Any, stop: Any, real: Any,
    scale: float, window: int | None, softcap: float | None, lse: Tensor, dC: Any, dS: Any, dD: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    from xarch.kernels.matrix_distance import triton_launch

    call = triton_launch.Call(q, k, C, B, D, _prefix(log_a), start, stop, real, scale, window, softcap)
    if dC is None:
        dC, dS, dD = triton_launch.backward_rows(call, lse, factor)
    else:
        dC, dS, dD = dC * factor[:, None, :, None], dS * factor[:, :, None], dD * factor
    dB, lost = triton_launch.backward_columns(call, lse, factor)
    dlog_a_BLH = (dS.double() - lost).flip(2).cumsum(2).flip(2).transpose(1, 2).contiguous()
    return dC.to(C.dtype), dB.to(B.dtype), dlog_a_BLH.to(log_a.dtype), dD.sum(0)


@_forward.register_fake
def _(C: Tensor, B: Tensor, log_a: Tensor, D: Any, q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, length, heads = log_a.shape
    at_once = rest[-1]

    def empty(*shape: Any) -> Tensor:
        return log_a.new_empty(shape, dtype=torch.float32)

    found = [empty(batch, heads), empty(batch, heads), empty(batch, heads, length)]
    if at_once:
        return *found, empty(*C.shape), empty(batch, heads, length), empty(batch, heads)
    return *found, empty(0), empty(0), empty(0)


@_backward.register_fake
def _(factor: Tensor, C: Tensor, B: Tensor, log_a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return C.new_empty(C.shape), B.new_empty(B.shape), log_a.new_empty(log_a.shape), factor.new_empty(factor.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.window, ctx.softcap, ctx.at_once = inputs
    distance, _, lse, *half = output
    ctx.save_for_backward(*tensors, distance, lse, *(half if ctx.at_once else (None, None, None)))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, ddistance: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    *tensors, distance, lse, dC, dS, dD = ctx.saved_tensors
    if ddistance is None:
        return (None,) * 13
    # At distance zero every entry of M - P is zero, and so is the gradient.
    factor = torch.where(distance > 0, ddistance / distance, 0).contiguous()
    dC, dB, dlog_a, dD = torch.ops.xarch.matrix_distance_triton_backward(
        factor, *tensors, ctx.scale, ctx.window, ctx.softcap, lse, dC, dS, dD
    )
    D = tensors[3]
    return dC, dB, dlog_a, None if D is None else dD.to(D.dtype), *(None,) * 9


_forward.register_autograd(_differentiate, setup_context=_keep)


def check(run: Callable[..., Any], device: str) -> None:
    """Compare a GPU backend with the naive one on a device type: several tiles, documents, a window, grouped keys.

    Raises:
        SelfCheckError: they differ.
    """
    segments_BL = (torch.arange(260, device=device) // 150)[None]
    q, k = waves(1, 260, 2, 24, phase=0.1, device=device), waves(1, 260, 1, 24, phase=0.2, device=device)

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def outputs(C: Tensor, B: Tensor, log_a: Tensor, D: Tensor) -> list[Tensor]:
            found = function(
                q.to(C.dtype), k.to(C.dtype), C, B, -log_a.abs(), D, scale=0.3, window=40, softcap=None,
                segment_ids_BL=segments_BL, mask_BL=None, tile=(64, 64),
            )  # fmt: skip
            return [found.distance_BH]

        return outputs

    shapes = [(1, 260, 2, 20), (1, 260, 2, 20), (1, 260, 2), (2,)]
    operands = [waves(*shape, phase=i, device=device) for i, shape in enumerate(shapes)]
    agree(call(run), call(matrix_distance_naive), operands, tolerance=TOLERANCE)
