"""Decays of a chunk of tokens with one decay per head, as SSD and the gated delta rule take them.

Legend: L tokens, Q tokens of the chunk, n sequences times heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.precision import LOG_FLOOR, tracing


class Decay(NamedTuple):
    """Decays of one chunk, zero where a change of document lies between."""

    inside_nQQ: Tensor
    """exp(S_t - S_s) from token s to token t of the chunk; also zero above the diagonal."""
    enter_nQ1: Tensor
    """exp(S_t) from the state before the chunk to token t."""
    leave_nQ1: Tensor
    """exp(T - S_s) from token s to the state after the chunk."""
    cross_n11: Tensor
    """exp(T) from the state before to the state after the chunk."""


def lower_triangle(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones on and below the diagonal [size, size]: the mask of :func:`chunk_decay`, made once for all chunks."""
    return torch.ones(size, size, dtype=dtype, device=device).tril()


def chunk_decay(log_a_nQ: Tensor, tril_QQ: Tensor, run_nL: Tensor | None, start: int) -> Decay:
    """The decays of a chunk.

    Args:
        log_a_nQ: log of the decay of its tokens.
        tril_QQ: from :func:`lower_triangle`, of at least Q rows.
        run_nL: number of changes of document up to each token of the whole sequence, or None for one document.
        start: place of the chunk's first token in the sequence.
    """
    length = log_a_nQ.shape[1]
    tril_QQ = tril_QQ[:length, :length]
    # One huge step would swallow the digits of all later ones in the prefix sum.
    log_a_nQ = log_a_nQ.clamp(min=LOG_FLOOR)
    # Some export targets have no CumSum; everywhere else a matmul could run in reduced precision.
    S_nQ = log_a_nQ @ tril_QQ.t() if tracing() else log_a_nQ.cumsum(-1)
    inside_nQQ = (S_nQ[:, :, None] - S_nQ[:, None, :]).clamp_(LOG_FLOOR, 0.0).exp_().mul_(tril_QQ)
    enter_nQ = S_nQ.clamp(min=LOG_FLOOR).exp_()
    leave_nQ = (S_nQ[:, -1:] - S_nQ).clamp_(min=LOG_FLOOR).exp_()
    if run_nL is not None:
        before = max(start - 1, 0)
        run_nQ, before_n1 = run_nL[:, start : start + length], run_nL[:, before : before + 1]
        inside_nQQ.mul_(run_nQ[:, :, None] == run_nQ[:, None, :])
        enter_nQ.mul_(run_nQ == before_n1)
        leave_nQ.mul_(run_nQ == run_nQ[:, -1:])
    # What reaches the last token reaches the next chunk.
    return Decay(inside_nQQ, enter_nQ[:, :, None], leave_nQ[:, :, None], enter_nQ[:, -1:, None])


def decay_gradient(dS_nQ: Tensor, dT_n1: Tensor) -> Tensor:
    """Gradient of log a [n, Q]: token k is in the prefix sums of the tokens from k on, and in that of the chunk."""
    return dS_nQ.flip(-1).cumsum(-1).flip(-1) + dT_n1
