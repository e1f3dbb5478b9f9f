"""The gated delta rule in Triton kernels, chunk by chunk, in float32.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gated_delta.naive import gated_delta_naive
from xarch.kernels.gated_delta.plain import gated_delta_plain
from xarch.kernels.gpu import TOLERANCE, why_not_triton
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves

LARGEST = 128
"""Wider heads do not fit the memory of a program."""

CHUNKS = (16, 32)
"""Tokens of a chunk, at least and at most: tensor cores take no fewer, and more tiles do not fit beside the state."""


def _check(device: str) -> None:
    """Several chunks, documents, and queries that share a state."""
    segments_BL = (torch.arange(100, device=device) // 70)[None]
    shapes = [(1, 100, 4, 20), (1, 100, 2, 20), (1, 100, 2, 24), (1, 100, 2), (1, 100, 2), (1, 2, 24, 20)]
    operands = [waves(*shape, phase=i, device=device) for i, shape in enumerate(shapes)]
    operands[1] = torch.nn.functional.normalize(operands[1], dim=-1)
    operands[3], operands[4] = -0.05 * operands[3].abs(), 0.5 + 0.5 * operands[4]

    def call(function: Any) -> Any:
        options = {"segment_ids_BL": segments_BL, "chunk_size": None}
        return lambda *t: function(*t[:5], initial_state_BKPN=t[5], **options)

    agree(call(gated_delta_triton), call(gated_delta_naive), operands, tolerance=TOLERANCE)


@register(
    "gated_delta",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_triton,
    check=_check,
)
def gated_delta_triton(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    *,
    initial_state_BKPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.gated_delta`; the state is always returned.

    Calls with a float64 operand, no element, or more than :data:`LARGEST` values per head run in PyTorch.
    """
    operands = (q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK)
    width, size = v_BLKP.shape[-1], k_BLKN.shape[-1]
    wide = island_dtype(*operands, initial_state_BKPN) == torch.float64 or max(width, size) > LARGEST
    if wide or v_BLKP.numel() == 0 or size == 0:
        state: dict[str, Any] = {"initial_state_BKPN": initial_state_BKPN, "segment_ids_BL": segment_ids_BL}
        return gated_delta_plain(*operands, **state, chunk_size=chunk_size)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL).int()
    initial = None if initial_state_BKPN is None else initial_state_BKPN.float().contiguous()
    chunk = 1 << (min(max(chunk_size or CHUNKS[1], CHUNKS[0]), CHUNKS[1]) - 1).bit_length()
    y, last, _ = torch.ops.xarch.gated_delta_triton_forward(*operands, initial, run_BL, chunk)
    return y, last


@torch.library.custom_op(
    "xarch::gated_delta_triton_forward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor log_a, Tensor beta, Tensor? initial, Tensor? run, int chunk)"
    " -> (Tensor, Tensor, Tensor)",
)
def _forward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.gated_delta import triton_launch

    return triton_launch.forward(*args)


@torch.library.custom_op(
    "xarch::gated_delta_triton_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dlast, Tensor q, Tensor k, Tensor v, Tensor log_a, Tensor beta, Tensor? run,"
    " Tensor kept, int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*args: Any) -> tuple[Tensor, ...]:
    from xarch.kernels.gated_delta import triton_launch

    return triton_launch.backward(*args)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, initial: Any, run: Any, chunk: int) -> Any:
    batch, length, states, width = v.shape
    heads, size = q.shape[2:]
    shape = (batch, states, width, size)
    return (
        v.new_empty(batch, length, heads, width),
        v.new_empty(shape, dtype=torch.float32),
        v.new_empty(batch, states, -(-length // chunk), width, size, dtype=torch.float32),
    )


@_backward.register_fake
def _(dy: Tensor, dlast: Any, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, *rest: Any) -> Any:
    wide = [t.new_empty(t.shape, dtype=torch.float32) for t in (log_a, beta)]
    batch, _, states, width = v.shape
    dinitial = v.new_empty(batch, states, width, k.shape[-1], dtype=torch.float32)
    return (*(t.new_empty(t.shape) for t in (q, k, v)), *wide, dinitial)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, initial, run, chunk = inputs
    ctx.save_for_backward(*operands, run, output[2])
    ctx.chunk, ctx.has_initial = chunk, initial is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *operands, run, kept = ctx.saved_tensors
    q, v, log_a, beta = operands[0], operands[2], operands[3], operands[4]
    dy = v.new_zeros(*q.shape[:3], v.shape[-1]) if dy is None else dy
    dlast = None if dlast is None else dlast.contiguous()
    dq, dk, dv, dlog_a, dbeta, dinitial = torch.ops.xarch.gated_delta_triton_backward(
        dy, dlast, *operands, run, kept, ctx.chunk
    )
    gates = dlog_a.to(log_a.dtype), dbeta.to(beta.dtype)
    return dq, dk, dv, *gates, dinitial if ctx.has_initial else None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
