"""Launching the Triton kernels of the gated delta rule: block sizes and grids. Importing this imports triton.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width, C chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from xarch.kernels.gated_delta import triton_kernels as kernels
from xarch.kernels.gpu import dot_mode, rows_last
from xarch.kernels.precision import LOG_FLOOR


def forward(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    initial_BKPN: Tensor | None,
    run_BL: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last token and the states before each chunk [B, K, C, P, N]."""
    operands = (*(rows_last(t) for t in (q_BLHN, k_BLKN, v_BLKP)), log_a_BLK, beta_BLK)
    batch, length, states, width = v_BLKP.shape
    heads, size = q_BLHN.shape[2:]
    chunks = -(-length // chunk)
    y = v_BLKP.new_empty(batch, length, heads, width)
    last = v_BLKP.new_empty(batch, states, width, size, dtype=torch.float32)
    kept = v_BLKP.new_empty(batch, states, chunks, width, size, dtype=torch.float32)
    kernels.forward_kernel[(states, batch)](
        *operands, last if run_BL is None else run_BL, last if initial_BKPN is None else initial_BKPN, y, last, kept,
        length, heads, states, heads // states, width, size, chunks, *_strides(*operands),
        HAS_INITIAL=initial_BKPN is not None, **_options(run_BL, chunk, width, size, *operands[:3]),
    )  # fmt: skip
    return y, last, kept


def backward(
    dy_BLHP: Tensor,
    dlast_BKPN: Tensor | None,
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    run_BL: Tensor | None,
    kept: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dlog a and dbeta (float32) and the gradient of the initial state."""
    operands = (*(rows_last(t) for t in (q_BLHN, k_BLKN, v_BLKP)), log_a_BLK, beta_BLK)
    dy = rows_last(dy_BLHP)
    batch, length, states, width = v_BLKP.shape
    heads, size = q_BLHN.shape[2:]
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q_BLHN, k_BLKN, v_BLKP)]
    gradients += [kept.new_empty(batch, length, states) for _ in range(2)]
    dinitial = kept.new_empty(batch, states, width, size)
    kernels.backward_kernel[(states, batch)](
        *operands, dy, kept if run_BL is None else run_BL, kept if dlast_BKPN is None else dlast_BKPN, kept,
        *gradients, dinitial,
        length, heads, states, heads // states, width, size, kept.shape[2], *_strides(*operands, dy),
        HAS_LAST=dlast_BKPN is not None, **_options(run_BL, chunk, width, size, *operands[:3]),
    )  # fmt: skip
    dq, dk, dv, dlog_a, dbeta = gradients
    return dq, dk, dv, dlog_a, dbeta, dinitial


def _strides(*tensors: Tensor) -> list[int]:
    return [s for t in tensors for s in t.stride()[:3]]


def _options(run: Tensor | None, chunk: int, width: int, size: int, *operands: Tensor) -> dict[str, Any]:
    """Constants of both kernels; all tiles of a chunk are float32 and live in registers and shared memory."""
    BP, BN = (max(16, triton.next_power_of_2(n)) for n in (width, size))
    return {
        "FLOOR": LOG_FLOOR,
        "HAS_RUN": run is not None,
        "Q": chunk,
        "ROUNDS": chunk.bit_length() - 1,
        "BP": BP,
        "BN": BN,
        "PRECISION": dot_mode(*operands)["PRECISION"],
        "num_warps": 4 if max(BP, BN) <= 64 else 8,
        "num_stages": 1,
    }
