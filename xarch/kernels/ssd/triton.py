"""SSD in Triton kernels, chunk by chunk: operands enter tensor cores in their own dtype, sums and decays are float32.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import TOLERANCE, why_not_triton
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves
from xarch.kernels.ssd.naive import ssd_naive
from xarch.kernels.ssd.plain import ssd_plain

LARGEST = 256
"""Wider heads and larger states do not fit the registers of a program."""


@register(
    "ssd",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_triton,
    check=lambda device: check(ssd_triton, device),
)
def ssd_triton(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    *,
    initial_state_BHPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.ssd`; the state is always returned.

    Calls with a float64 operand, no element, or more than :data:`LARGEST` values per head or state run in PyTorch.
    """
    D_H = None if D_H is None else D_H.contiguous()
    operands: list[Any] = [x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H]
    state: dict[str, Any] = {"initial_state_BHPN": initial_state_BHPN, "segment_ids_BL": segment_ids_BL}
    width, size = x_BLHP.shape[-1], B_BLGN.shape[-1]
    wide = island_dtype(*operands, initial_state_BHPN) == torch.float64 or max(width, size) > LARGEST
    if wide or x_BLHP.numel() == 0 or size == 0:
        return ssd_plain(*operands, **state, chunk_size=chunk_size)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL).int()
    initial = None if initial_state_BHPN is None else initial_state_BHPN.float().contiguous()
    # The larger a state, the more tokens must share the memory traffic of storing it.
    chunk = chunk_size or (128 if width * size <= 64 * 64 else 256)
    y, last, _, _ = torch.ops.xarch.ssd_triton_forward(*operands, initial, run_BL, min(chunk, x_BLHP.shape[1]))
    return y, last


@torch.library.custom_op(
    "xarch::ssd_triton_forward",
    mutates_args=(),
    schema="(Tensor x, Tensor log_a, Tensor B, Tensor C, Tensor? D, Tensor? initial, Tensor? run, int chunk)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.ssd import triton_launch

    return triton_launch.forward(*args)


@torch.library.custom_op(
    "xarch::ssd_triton_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dlast, Tensor x, Tensor B, Tensor C, Tensor? D, Tensor? run, Tensor last, Tensor S,"
    " Tensor states, int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.ssd import triton_launch

    return triton_launch.backward(*args)


@_forward.register_fake
def _(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Any, initial: Any, run: Any, chunk: int) -> tuple[Tensor, ...]:
    batch, length, heads, width = x.shape
    size = B.shape[-1]
    Q = 16
    while min(chunk, 256) > Q:
        Q *= 2
    chunks = (length + Q - 1) // Q
    return (
        x.new_empty(x.shape),
        x.new_empty(batch, heads, width, size, dtype=torch.float32),
        x.new_empty(batch, heads, chunks * Q, dtype=torch.float32),
        x.new_empty(batch, chunks, heads, width, size, dtype=torch.float32),
    )


@_backward.register_fake
def _(dy: Tensor, dlast: Any, x: Tensor, B: Tensor, C: Tensor, D: Any, run: Any, last: Tensor, *rest: Any) -> Any:
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[:3], dtype=torch.float32),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        x.new_empty(0 if D is None else x.shape[2], dtype=torch.float32),
        torch.empty_like(last),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, log_a, B, C, D, initial, run, chunk = inputs
    _, last, S, states = output
    ctx.save_for_backward(x, B, C, D, run, last, S, states)
    ctx.log_a_dtype, ctx.has_initial, ctx.chunk = log_a.dtype, initial is not None, chunk
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, B, C, D, *rest = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dlast = None if dlast is None else dlast.contiguous()
    dx, dlog_a, dB, dC, dD, dinitial = torch.ops.xarch.ssd_triton_backward(dy, dlast, x, B, C, D, *rest, ctx.chunk)
    dD = None if D is None else dD.to(D.dtype)
    return dx, dlog_a.to(ctx.log_a_dtype), dB, dC, dD, dinitial if ctx.has_initial else None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def check(run: Callable[..., Any], device: str) -> None:
    """Compare a GPU backend with the naive one on a device type: several chunks, documents, a shared group.

    Raises:
        SelfCheckError: they differ.
    """
    segments_BL = (torch.arange(260, device=device) // 220)[None]

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def outputs(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Any:
            options = {"initial_state_BHPN": state, "segment_ids_BL": segments_BL, "chunk_size": 64}
            return function(x, -log_a.abs(), B, C, D, **options)

        return outputs

    shapes = [(1, 260, 2, 24), (1, 260, 2), (1, 260, 1, 20), (1, 260, 1, 20), (2,), (1, 2, 24, 20)]
    operands = [waves(*shape, phase=i, device=device) for i, shape in enumerate(shapes)]
    agree(call(run), call(ssd_naive), operands, tolerance=TOLERANCE)
