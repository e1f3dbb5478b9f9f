"""The gated delta rule in C++ for CPUs, float32 inside: chunks whose tiles and state stay in the cache of a thread.

A call is split into sequences and states, each computed by one thread in a fixed order, so results do not depend on the
number of threads. The forward pass keeps one state per chunk if there will be a backward pass. Formulas: README.md.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width, C chunks.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gated_delta.naive import gated_delta_naive
from xarch.kernels.gated_delta.plain import gated_delta_plain
from xarch.kernels.native import declare, kernel, why_not
from xarch.kernels.native.tensors import Rows, call_of, dense, rows
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selfcheck import agree, waves

CHUNK = 32
"""Fastest of 32, 64 and 128 on an AVX-512 Xeon at N = P = 64 (see README.md)."""

_SIZES = ("batch", "length", "heads", "states", "width", "size", "chunk", "threads")
_STRIDED = ("q", "k", "v", "log_a", "beta", "dy")
_DENSE = ("initial", "run", "y", "last", "kept", "dlast", "dq", "dk", "dv", "dlog_a", "dbeta", "dinitial")
_Call = call_of(_SIZES, _DENSE, strided=_STRIDED)


@kernel("gated_delta", Path(__file__).with_name("kernel.cpp"))
def _library(loaded: ctypes.CDLL) -> None:
    for function in (loaded.gated_delta_forward, loaded.gated_delta_backward):
        declare(function, ctypes.POINTER(_Call))


def _check(_: str) -> None:
    """Two chunk sizes, the last chunk partial; shared states, documents, widths that fill no vector."""
    shapes = [(2, 150, 4, 18), (2, 150, 2, 18), (2, 150, 2, 19), (2, 150, 2), (2, 150, 2), (2, 2, 19, 18)]
    inputs = [waves(*shape, phase=i) for i, shape in enumerate(shapes)]
    inputs[1] = torch.nn.functional.normalize(inputs[1], dim=-1)
    # Slow enough that a state lives through several chunks.
    inputs[3], inputs[4] = -0.02 * inputs[3].abs(), 0.5 + 0.5 * inputs[4]
    segments = (torch.arange(150) // 110).expand(2, -1)

    def fast(*t: Tensor) -> list[Tensor]:
        return [o for chunk in (None, 20) for o in run(gated_delta_cpp, chunk, *t)]

    def truth(*t: Tensor) -> list[Tensor]:
        return 2 * [*run(gated_delta_naive, None, *t)]

    def run(function: Any, chunk: int | None, *t: Tensor) -> Any:
        return function(*t[:5], initial_state_BKPN=t[5], segment_ids_BL=segments, chunk_size=chunk)

    agree(fast, truth, inputs, tolerance=4e-5)


@register(
    "gated_delta",
    "cpp",
    priority=30,
    devices=["cpu"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not,
    check=_check,
)
def gated_delta_cpp(
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
    """Arguments and results of :func:`xarch.kernels.gated_delta`; the state is always returned."""
    operands = (q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK, initial_state_BKPN)
    if island_dtype(*operands) == torch.float64 or 0 in v_BLKP.shape or k_BLKN.shape[-1] == 0:
        # Nothing to compute, or an operand asks for float64.
        return gated_delta_plain(
            *operands[:5],
            initial_state_BKPN=initial_state_BKPN,
            segment_ids_BL=segment_ids_BL,
            chunk_size=chunk_size,
        )
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    chunk = min(chunk_size or CHUNK, v_BLKP.shape[1])
    y_BLHP, last_BKPN, _ = gated_delta_cpp_forward(*operands, run_BL, chunk, keep)
    return y_BLHP, last_BKPN


@torch.library.custom_op("xarch::gated_delta_cpp_forward", mutates_args=())
def gated_delta_cpp_forward(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    initial_state_BKPN: Tensor | None,
    run_BL: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last token, and with ``keep`` the state before each chunk [B, K, C, N, P]."""
    operands = (q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK)
    y_BLHP, last_BKPN, kept_BKCNP = _outputs(q_BLHN, v_BLKP, chunk, keep, torch.float32)
    initial = None if initial_state_BKPN is None else dense(initial_state_BKPN)
    kept = kept_BKCNP if keep else None
    _run("gated_delta_forward", operands, run_BL, chunk, initial=initial, y=y_BLHP, last=last_BKPN, kept=kept)
    return y_BLHP.to(v_BLKP.dtype), last_BKPN, kept_BKCNP


@gated_delta_cpp_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_a: Tensor,
    beta: Tensor,
    initial: Tensor | None,
    run: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(q, v, chunk, keep, v.dtype)


@torch.library.custom_op("xarch::gated_delta_cpp_backward", mutates_args=())
def gated_delta_cpp_backward(
    dy_BLHP: Tensor,
    dlast_BKPN: Tensor | None,
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    has_initial: bool,
    run_BL: Tensor | None,
    kept_BKCNP: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_a, beta and the initial state, the last in float32."""
    operands = (q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK)
    names = ("dq", "dk", "dv", "dlog_a", "dbeta")
    found = {name: t.new_empty(t.shape, dtype=torch.float32) for name, t in zip(names, operands, strict=True)}
    dinitial_BKPN = _state(v_BLKP, k_BLKN.shape[-1])
    _run(
        "gated_delta_backward",
        operands,
        run_BL,
        chunk,
        dy=dy_BLHP,
        # Its values are in the first of the states kept; only its presence counts.
        initial=kept_BKCNP if has_initial else None,
        dlast=None if dlast_BKPN is None else dense(dlast_BKPN),
        kept=kept_BKCNP,
        dinitial=dinitial_BKPN,
        **found,
    )
    dq, dk, dv, dlog_a, dbeta = (found[name].to(t.dtype) for name, t in zip(names, operands, strict=True))
    return dq, dk, dv, dlog_a, dbeta, dinitial_BKPN


@gated_delta_cpp_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_a: Tensor,
    beta: Tensor,
    has_initial: bool,
    run: Tensor | None,
    kept: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dlog_a, dbeta = (t.new_empty(t.shape) for t in (q, k, v, log_a, beta))
    return dq, dk, dv, dlog_a, dbeta, _state(v, k.shape[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, initial, run, chunk, _ = inputs
    ctx.save_for_backward(*operands, run, output[2])
    ctx.chunk, ctx.initial_dtype = chunk, None if initial is None else initial.dtype
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *operands, run, kept = ctx.saved_tensors
    if dy is None:
        q, v = operands[0], operands[2]
        dy = v.new_zeros(*q.shape[:3], v.shape[-1])
    has_initial = ctx.initial_dtype is not None
    *found, dinitial = gated_delta_cpp_backward(dy, dlast, *operands, has_initial, run, kept, ctx.chunk)
    return (*found, dinitial.to(ctx.initial_dtype) if has_initial else None, None, None, None)


gated_delta_cpp_forward.register_autograd(_backward, setup_context=_setup)


def _run(
    function: str,
    operands: tuple[Tensor, ...],
    run_BL: Tensor | None,
    chunk: int,
    *,
    dy: Tensor | None = None,
    **tensors: Tensor | None,
) -> None:
    """Call C++; the operands are kept alive in float32 meanwhile."""
    given = operands if dy is None else (*operands, dy)
    strided = {name: rows(t) for name, t in zip(_STRIDED, given, strict=False)}
    contiguous = {"run": None if run_BL is None else run_BL.contiguous(), **tensors}
    q, k, v = operands[:3]
    batch, length, states, width = v.shape
    sizes = (batch, length, q.shape[2], states, width, k.shape[-1], chunk, torch.get_num_threads())
    call = _Call(
        *sizes,
        **{name: Rows.of(t) for name, t in strided.items()},
        **{name: t.data_ptr() for name, t in contiguous.items() if t is not None},
    )
    getattr(_library(), function)(call)


def _outputs(q: Tensor, v: Tensor, chunk: int, keep: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, states, width = v.shape
    size, kept = q.shape[-1], -(-length // chunk) if keep else 0
    y = v.new_empty((batch, length, q.shape[2], width), dtype=dtype)
    return y, _state(v, size), v.new_empty((batch, states, kept, size, width), dtype=torch.float32)


def _state(v: Tensor, size: int) -> Tensor:
    batch, _, states, width = v.shape
    return v.new_empty((batch, states, width, size), dtype=torch.float32)
