"""Launching the Triton kernels of SSD: block sizes, scratch memory and grids. Importing this imports triton.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from xarch.kernels.gpu import dot_mode, heads_per_program, is_half, rows_last
from xarch.kernels.precision import LOG_FLOOR
from xarch.kernels.ssd import triton_backward_kernels as backward_kernels
from xarch.kernels.ssd import triton_kernels as kernels


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call and how it is cut."""

    batch: int
    length: int
    heads: int
    width: int
    groups: int
    size: int
    chunk: int

    @staticmethod
    def of(x_BLHP: Tensor, B_BLGN: Tensor, chunk: int) -> Shape:
        """Sizes of a call; a chunk is rounded up to a power of two that tensor cores take."""
        batch, length, heads, width = x_BLHP.shape
        groups, size = B_BLGN.shape[2:]
        return Shape(batch, length, heads, width, groups, size, min(256, max(16, triton.next_power_of_2(chunk))))

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

    @property
    def padded(self) -> int:
        return self.chunks * self.chunk

    @property
    def ratio(self) -> int:
        return self.heads // self.groups

    def blocks(self, half: bool) -> dict[str, int]:
        """Block sizes; float32, wide heads and large states take fewer tokens at a time, to fit the registers."""
        BP, BN = (max(16, triton.next_power_of_2(n)) for n in (self.width, self.size))
        T = 64 if half and max(BP, BN) <= 128 else 32 if half or max(BP, BN) <= 128 else 16
        return {"Q": self.chunk, "T": min(self.chunk, T), "BP": BP, "BN": BN}


def _resources(blocks: dict[str, int], half: bool) -> dict[str, int]:
    """Warps and pipeline stages; float32 operands fill shared memory without a second stage."""
    return {"num_warps": 4 if half and max(blocks["BP"], blocks["BN"]) <= 64 else 8, "num_stages": 2 if half else 1}


def forward(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    initial_BHPN: Tensor | None,
    run_BL: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after the last token, S [B, H, padded] and the states before each chunk [B, chunks, H, P, N]."""
    shape = Shape.of(x_BLHP, B_BLGN, chunk)
    batch, heads, padded, chunks = shape.batch, shape.heads, shape.padded, shape.chunks
    x, B, C = rows_last(x_BLHP), rows_last(B_BLGN), rows_last(C_BLGN)
    S = x.new_empty(batch, heads, padded, dtype=torch.float32)
    states = x.new_empty(batch, chunks, heads, shape.width, shape.size, dtype=torch.float32)
    last = x.new_empty(batch, heads, shape.width, shape.size, dtype=torch.float32)
    y = torch.empty_like(x_BLHP, memory_format=torch.contiguous_format)
    flags: dict[str, Any] = {"FLOOR": LOG_FLOOR, "HAS_RUN": run_BL is not None}
    mode = dot_mode(x, B, C)
    half = is_half(mode)
    blocks = shape.blocks(half)
    run = S if run_BL is None else run_BL
    kernels.prefix_kernel[(chunks, -(-heads // 4), batch)](
        log_a_BLH, S, shape.length, heads, padded, *log_a_BLH.stride(), FLOOR=LOG_FLOOR, Q=shape.chunk, BH=4
    )
    _chunk_sums(x, B, S, run, states, shape, False, flags, blocks, mode)
    cells = shape.width * shape.size
    kernels.pass_kernel[(-(-cells // 256), heads, batch)](
        states, last if initial_BHPN is None else initial_BHPN, last, S, run,
        shape.length, heads, cells, padded, chunks,
        **flags, HAS_INITIAL=initial_BHPN is not None, Q=shape.chunk, BLOCK=256,
    )  # fmt: skip
    BP = min(blocks["BP"], 128)
    grid = (chunks * (shape.chunk // blocks["T"]), heads * -(-shape.width // BP), batch)
    kernels.scan_kernel[grid](
        x, B, C, S if D_H is None else D_H, S, run, states, y,
        shape.length, heads, shape.ratio, shape.width, shape.size, padded,
        *x.stride()[:3], *B.stride()[:3], *C.stride()[:3],
        **flags, HAS_D=D_H is not None, **{**blocks, "BP": BP}, **mode, **_resources(blocks, half),
    )  # fmt: skip
    return y, last, S, states


def backward(
    dy_BLHP: Tensor,
    dlast_BHPN: Tensor | None,
    x_BLHP: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    run_BL: Tensor | None,
    last: Tensor,
    S: Tensor,
    states: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dlog a (float32), dB, dC, dD (float32) and the gradient of the initial state."""
    shape = Shape.of(x_BLHP, B_BLGN, chunk)
    batch, length, heads, chunks, padded = shape.batch, shape.length, shape.heads, shape.chunks, shape.padded
    dy, x, B, C = (rows_last(t) for t in (dy_BLHP, x_BLHP, B_BLGN, C_BLGN))
    flags: dict[str, Any] = {"FLOOR": LOG_FLOOR, "HAS_RUN": run_BL is not None}
    mode = dot_mode(x, B, C, dy)
    half = is_half(mode)
    blocks = shape.blocks(half)
    run = S if run_BL is None else run_BL
    dstates = torch.empty_like(states)
    _chunk_sums(dy, C, S, run, dstates, shape, True, flags, blocks, mode)
    cells = shape.width * shape.size
    cuts = -(-cells // 256)
    dT = S.new_empty(batch, heads, chunks, cuts)
    dinitial = torch.empty_like(last)
    kernels.pass_backward_kernel[(cuts, heads, batch)](
        dstates, last if dlast_BHPN is None else dlast_BHPN, states, last, dinitial, dT, S, run,
        length, heads, cells, padded, chunks,
        **flags, HAS_LAST=dlast_BHPN is not None, Q=shape.chunk, BLOCK=256,
    )  # fmt: skip
    tiles = chunks * (shape.chunk // blocks["T"])
    count = heads_per_program(batch * tiles * heads, shape.ratio)
    parts = heads // count
    # Sums over parts of a group come afterwards, so they are kept in float32.
    dtypes = [t.dtype if parts == shape.groups else torch.float32 for t in (B, C)]
    dB, dC = (B.new_empty(batch, length, parts, shape.size, dtype=dtype) for dtype in dtypes)
    dx = torch.empty_like(x_BLHP, memory_format=torch.contiguous_format)
    dS = torch.empty_like(S)
    dD = S.new_empty((batch, heads, tiles) if D_H is not None else (0,))
    strides = [s for t in (dy, x, B, C) for s in t.stride()[:3]]
    sizes = [length, heads, shape.ratio, count, shape.width, shape.size, padded, *strides]
    launch: dict[str, Any] = {**flags, **blocks, **mode, **_resources(blocks, half)}
    backward_kernels.rows_kernel[(tiles, parts, batch)](dy, x, B, C, S, run, states, dC, dS, *sizes, **launch)
    backward_kernels.columns_kernel[(tiles, parts, batch)](
        dy, x, B, C, S if D_H is None else D_H, S, run, dstates, dx, dB, dD, dS, *sizes, HAS_D=D_H is not None, **launch
    )
    dlog_a = S.new_empty(batch, length, heads)
    backward_kernels.log_decay_kernel[(chunks, -(-heads // 4), batch)](
        dS, dT.sum(-1), dlog_a, length, heads, padded, chunks, Q=shape.chunk, BH=4
    )
    if parts != shape.groups:
        dB, dC = (t.unflatten(2, (shape.groups, -1)).sum(3) for t in (dB, dC))
    dD_H = dD if D_H is None else dD.sum((0, 2))
    return dx, dlog_a, dB.to(B.dtype), dC.to(C.dtype), dD_H, dinitial


def _chunk_sums(
    u: Tensor,
    v: Tensor,
    S: Tensor,
    run: Tensor,
    out: Tensor,
    shape: Shape,
    enter: bool,
    flags: dict[str, Any],
    blocks: dict[str, int],
    mode: dict[str, Any],
) -> None:
    BP = min(blocks["BP"], 64)
    kernels.chunk_sums_kernel[(shape.chunks, shape.heads * -(-shape.width // BP), shape.batch)](
        u, v, S, run, out, shape.length, shape.heads, shape.ratio, shape.width, shape.size, shape.padded,
        *u.stride()[:3], *v.stride()[:3],
        **flags, ENTER=enter, **{**blocks, "BP": BP}, **mode, **_resources(blocks, is_half(mode)),
    )  # fmt: skip
