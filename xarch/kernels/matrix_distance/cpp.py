"""The distance tile by tile in C++ on the CPU: memory linear in L, scores kept for one row of tiles.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import register
from xarch.kernels.matrix_distance import cpp_launch
from xarch.kernels.matrix_distance.naive import matrix_distance_naive
from xarch.kernels.matrix_distance.plain import matrix_distance_plain
from xarch.kernels.matrix_distance.result import MatrixDistance
from xarch.kernels.native import why_not
from xarch.kernels.precision import island_dtype
from xarch.kernels.selfcheck import agree

_Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _check(_: str) -> None:
    """Four tiles a side, a partial one, a window and a change of document; shared key heads."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    q, k = randn(1, 200, 2, 5), randn(1, 200, 1, 5)
    student = [randn(1, 200, 2, 3), randn(1, 200, 2, 3), -0.1 * randn(1, 200, 2).abs(), randn(2)]
    segments = (torch.arange(200, device="cpu") > 20).long()[None]
    options = {"scale": 0.5, "window": 140, "softcap": None, "segment_ids_BL": segments, "mask_BL": None}

    def run(function: Any) -> Any:
        return lambda *t: function(q.to(t[0].dtype), k.to(t[0].dtype), *t, tile=(64, 64), **options)[:1]

    agree(run(matrix_distance_cpp), run(matrix_distance_naive), student, tolerance=4e-6)


@register(
    "matrix_distance",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not,
    check=_check,
)
def matrix_distance_cpp(
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
    """Arguments and results of :func:`xarch.kernels.matrix_distance`; tiles have the size the kernel is made for.

    Calls with a float64 operand beside C run in PyTorch.
    """
    student = (C_BLGN, B_BLGN, log_a_BLH, D_H)
    if island_dtype(q_BLHE, k_BLKE, *student) == torch.float64:
        return matrix_distance_plain(
            q_BLHE, k_BLKE, *student, scale=scale, window=window, softcap=softcap, segment_ids_BL=segment_ids_BL,
            mask_BL=mask_BL, tile=tile,
        )  # fmt: skip
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in student)
    at_once = wanted and C_BLGN.shape[2] == log_a_BLH.shape[2]
    found = matrix_distance_cpp_forward(
        q_BLHE,
        k_BLKE,
        C_BLGN,
        B_BLGN,
        log_a_BLH,
        D_H,
        segment_ids_BL,
        mask_BL,
        float(scale),
        window,
        None if softcap is None else float(softcap),
        at_once,
    )
    return MatrixDistance(found[0], found[1].detach())


@torch.library.custom_op("xarch::matrix_distance_cpp_forward", mutates_args=(), device_types="cpu")
def matrix_distance_cpp_forward(
    q: Tensor,
    k: Tensor,
    C: Tensor,
    B: Tensor,
    log_a: Tensor,
    D: Tensor | None,
    segment_ids: Tensor | None,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    gradient: bool,
) -> _Found:
    """Distance, teacher norm, and the gradients of half the squared distance (empty unless wanted)."""
    v = cpp_launch.visit(
        q, k, C, B, log_a, D, segment_ids, mask, scale=scale, window=window, softcap=softcap, gradient=gradient
    )
    return v.distance_BH, v.teacher_norm_BH, v.dC_BLGN, v.dB_BLGN, v.dlog_a_BLH, v.dD_BH


@matrix_distance_cpp_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    C: Tensor,
    B: Tensor,
    log_a: Tensor,
    D: Tensor | None,
    segment_ids: Tensor | None,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    gradient: bool,
) -> _Found:
    per_head = (q.shape[0], q.shape[2])
    distance, teacher = (q.new_empty(per_head, dtype=torch.float32) for _ in range(2))
    if gradient:
        dC, dB, dlog_a = _like(C, B, log_a)
        dD = torch.empty_like(distance)
    else:
        dC, dB, dlog_a, dD = (q.new_empty((0,), dtype=torch.float32) for _ in range(4))
    return distance, teacher, dC, dB, dlog_a, dD


@torch.library.custom_op("xarch::matrix_distance_cpp_backward", mutates_args=(), device_types="cpu")
def matrix_distance_cpp_backward(
    factor: Tensor,
    q: Tensor,
    k: Tensor,
    C: Tensor,
    B: Tensor,
    log_a: Tensor,
    D: Tensor | None,
    segment_ids: Tensor | None,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of half the squared distances, times a factor [B, H], by a second visit."""
    v = cpp_launch.visit(
        q,
        k,
        C,
        B,
        log_a,
        D,
        segment_ids,
        mask,
        scale=scale,
        window=window,
        softcap=softcap,
        gradient=True,
        factor_BH=factor,
    )
    return v.dC_BLGN, v.dB_BLGN, v.dlog_a_BLH, v.dD_BH


@matrix_distance_cpp_backward.register_fake
def _(factor: Tensor, q: Tensor, k: Tensor, C: Tensor, B: Tensor, log_a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_like(C, B, log_a), torch.empty_like(factor, dtype=torch.float32)


def _like(*factors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape, dtype=torch.float32) for t in factors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Found) -> None:
    q, k, C, B, log_a, D, segment_ids, mask, *ctx.teacher, ctx.at_once = inputs
    ctx.set_materialize_grads(False)
    ctx.dtypes = C.dtype, B.dtype, log_a.dtype, None if D is None else D.dtype
    if ctx.at_once:
        ctx.save_for_backward(output[0], *output[2:])
    else:
        ctx.save_for_backward(output[0], q, k, C, B, log_a, D, segment_ids, mask)


def _differentiate(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(g is not None for g in others):
        raise UsageError(
            "matrix_distance: backend 'cpp' has no second derivatives",
            "choose backend 'naive' to differentiate the gradient again",
        )
    if grad is None:
        return (None,) * 12
    distance, *saved = ctx.saved_tensors
    # At distance zero every error is zero, and so is the gradient.
    factor = torch.where(distance > 0, grad / distance, 0)
    if ctx.at_once:
        dC, dB, dlog_a, dD = saved
        per_token = factor[:, None]
        dC, dB, dlog_a, dD = dC * per_token[..., None], dB * per_token[..., None], dlog_a * per_token, dD * factor
    else:
        dC, dB, dlog_a, dD = matrix_distance_cpp_backward(factor, *saved, *ctx.teacher)
    of_C, of_B, of_log_a, of_D = ctx.dtypes
    skip = None if of_D is None else dD.sum(0).to(of_D)
    return None, None, dC.to(of_C), dB.to(of_B), dlog_a.to(of_log_a), skip, *(None,) * 6


matrix_distance_cpp_forward.register_autograd(_differentiate, setup_context=_setup)
