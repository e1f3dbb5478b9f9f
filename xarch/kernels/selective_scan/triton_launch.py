"""Launching the Triton kernels of the selective scan: block sizes, scratch memory and grids. Imports triton.

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from xarch.kernels.gpu import SIZES, heads_per_program, rows_last
from xarch.kernels.precision import LOG_FLOOR
from xarch.kernels.selective_scan import triton_kernels as kernels


def _blocks(size: int, length: int) -> dict[str, int]:
    BN = triton.next_power_of_2(size)
    return {"BN": BN, "BL": min(max(16, SIZES.scan_tile // BN), max(16, triton.next_power_of_2(length)))}


def chunks_of(size: int, length: int) -> int:
    """Blocks of tokens of a call."""
    return -(-length // _blocks(size, length)["BL"])


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    run: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, D, L], the last state [B, D, N] and the states before each block of tokens [B, D, chunks, N]."""
    x, dt, B, C = (rows_last(t) for t in (x, dt, B, C))
    gate = x if z is None else rows_last(z)
    batch, channels, length = x.shape
    size = A.shape[1]
    blocks = _blocks(size, length)
    chunks = -(-length // blocks["BL"])
    y = x.new_empty(x.shape)
    last = x.new_empty(batch, channels, size, dtype=torch.float32)
    states = x.new_empty(batch, channels, chunks, size, dtype=torch.float32)
    kernels.forward_kernel[(channels, batch)](
        x, dt, A, B, C, _or(D, A), gate, _or(bias, A), _or(initial, A), _or(run, A), y, last, states,
        length, channels, size, channels // B.shape[1], chunks,
        *x.stride()[:2], *dt.stride()[:2], *B.stride()[:3], *C.stride()[:3], *gate.stride()[:2],
        HAS_INITIAL=initial is not None, HAS_D=D is not None, **_flags(z, bias, run, softplus), **blocks,
    )  # fmt: skip
    return y, last, states


def backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    run: Tensor | None,
    states: Tensor,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """dx, ddt, dA, dB, dC, dD, dz, dbias and dinitial; those of absent operands are empty."""
    dy, x, dt, B, C = (rows_last(t) for t in (dy, x, dt, B, C))
    gate = x if z is None else rows_last(z)
    batch, channels, length = x.shape
    size, groups = A.shape[1], B.shape[1]
    blocks = _blocks(size, length)
    chunks, ratio = states.shape[2], channels // groups
    flags = _flags(z, bias, run, softplus)
    dstates, dinitial = torch.empty_like(states), states.new_empty(batch, channels, size)
    kernels.pass_backward_kernel[(channels, batch)](
        dy, dt, A, C, gate, _or(bias, A), _or(run, A), _or(dlast, A), dstates, dinitial,
        length, channels, size, ratio, chunks,
        *dy.stride()[:2], *dt.stride()[:2], *C.stride()[:3], *gate.stride()[:2],
        HAS_LAST=dlast is not None, **flags, **blocks,
    )  # fmt: skip
    # The sums of a program's channels leave it once, so it takes as many as keep the GPU busy.
    count = heads_per_program(batch * chunks * channels, ratio)
    parts = channels // count
    dx, ddt, dz = x.new_empty(x.shape), dt.new_empty(dt.shape), gate.new_empty((0,) if z is None else z.shape)
    dA = states.new_empty(states.shape)
    dB, dC = states.new_empty(2, batch, parts, size, length).unbind()
    dD = states.new_empty((0,) if D is None else (batch, channels, chunks))
    dbias = states.new_empty((0,) if bias is None else (batch, channels, chunks))
    kernels.backward_kernel[(chunks, parts, batch)](
        dy, x, dt, A, B, C, _or(D, A), gate, _or(bias, A), _or(run, A), states, dstates,
        dx, ddt, dz, dA, dB, dC, dD, dbias,
        length, channels, size, ratio, chunks, count,
        *dy.stride()[:2], *x.stride()[:2], *dt.stride()[:2], *B.stride()[:3], *C.stride()[:3], *gate.stride()[:2],
        HAS_D=D is not None, **flags, **blocks,
    )  # fmt: skip
    dB, dC = (t.unflatten(1, (groups, -1)).sum(2).to(like.dtype) for t, like in ((dB, B), (dC, C)))
    dD, dbias = (t if t.dim() == 1 else t.sum((0, 2)) for t in (dD, dbias))
    return dx, ddt, dA.sum((0, 2)), dB, dC, dD, dz, dbias, dinitial


def _flags(z: Tensor | None, bias: Tensor | None, run: Tensor | None, softplus: bool) -> dict[str, Any]:
    has = {"HAS_Z": z is not None, "HAS_BIAS": bias is not None, "HAS_RUN": run is not None}
    return {"FLOOR": LOG_FLOOR, "SOFTPLUS": softplus, **has}


def _or(operand: Tensor | None, other: Tensor) -> Tensor:
    """A kernel takes no None; it never reads what a flag says is absent."""
    return other if operand is None else operand
