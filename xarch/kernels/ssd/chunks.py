"""Cutting SSD operands into chunks of tokens, heads first, with the decays of each chunk.

Legend: B batch, L tokens, G B/C groups, R heads per group, P value width, N state size, Q tokens of a chunk, m = B·G,
n = B·G·R.
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


class Chunk(NamedTuple):
    """Operands of one chunk."""

    x_nQP: Tensor
    B_mQN: Tensor
    C_mQN: Tensor
    B_nQN: Tensor
    C_nQN: Tensor
    decay: Decay


class Chunks:
    """The operands of a call; rearranging them chunk by chunk in cache is cheaper than rearranging whole tensors."""

    def __init__(
        self,
        x_BLGRP: Tensor,
        log_a_BLGR: Tensor,
        B_BLGN: Tensor,
        C_BLGN: Tensor,
        D_H: Tensor | None,
        run_BL: Tensor | None,
        size: int,
        dtype: torch.dtype,
    ) -> None:
        self.batch, self.length, self.groups, self.ratio = x_BLGRP.shape[:4]
        self.x, self.log_a, self.B, self.C, self.run = x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, run_BL
        self.size = size
        self.dtype = dtype
        self.starts = range(0, self.length, size)
        self.D_n11 = None if D_H is None else D_H.to(dtype).repeat(self.batch)[:, None, None]
        self._tril_QQ = torch.ones(size, size, dtype=dtype, device=x_BLGRP.device).tril()
        self._tracing = tracing()

    def at(self, start: int) -> tuple[slice, Chunk]:
        """Where the chunk that begins at a token lies, and its operands."""
        where = slice(start, min(start + self.size, self.length))
        B_mQN, C_mQN = self.group_first(self.B[:, where]), self.group_first(self.C[:, where])
        chunk = Chunk(
            self.head_first(self.x[:, where]), B_mQN, C_mQN, self.spread(B_mQN), self.spread(C_mQN), self._decay(where)
        )
        return where, chunk

    def _decay(self, where: slice) -> Decay:
        tril_QQ = self._tril_QQ[: where.stop - where.start, : where.stop - where.start]
        # One huge step would swallow the digits of all later ones in the prefix sum.
        log_a_nQ = self.log_a[:, where].to(self.dtype).clamp(min=LOG_FLOOR).permute(0, 2, 3, 1).flatten(0, 2)
        # Some export targets have no CumSum; everywhere else a matmul could run in reduced precision.
        S_nQ = log_a_nQ @ tril_QQ.t() if self._tracing else log_a_nQ.cumsum(-1)
        inside_nQQ = (S_nQ[:, :, None] - S_nQ[:, None, :]).clamp_(LOG_FLOOR, 0.0).exp_().mul_(tril_QQ)
        enter_nQ = S_nQ.clamp(min=LOG_FLOOR).exp_()
        leave_nQ = (S_nQ[:, -1:] - S_nQ).clamp_(min=LOG_FLOOR).exp_()
        if self.run is not None:
            before = max(where.start - 1, 0)
            per_row = self.groups * self.ratio
            run_nQ = self.run[:, where].repeat_interleave(per_row, 0)
            before_n1 = self.run[:, before : before + 1].repeat_interleave(per_row, 0)
            inside_nQQ.mul_(run_nQ[:, :, None] == run_nQ[:, None, :])
            enter_nQ.mul_(run_nQ == before_n1)
            leave_nQ.mul_(run_nQ == run_nQ[:, -1:])
        # What reaches the last token reaches the next chunk.
        return Decay(inside_nQQ, enter_nQ[:, :, None], leave_nQ[:, :, None], enter_nQ[:, -1:, None])

    def head_first(self, t_BQGRP: Tensor) -> Tensor:
        """[n, Q, P] in the island dtype."""
        return t_BQGRP.to(self.dtype).permute(0, 2, 3, 1, 4).flatten(0, 2)

    def group_first(self, t_BQGN: Tensor) -> Tensor:
        """[m, Q, N] in the island dtype."""
        return t_BQGN.to(self.dtype).transpose(1, 2).flatten(0, 1)

    def heads_last(self, t_nQP: Tensor) -> Tensor:
        """[B, Q, G, R, P], the inverse of :meth:`head_first`."""
        return t_nQP.unflatten(0, (self.batch, self.groups, self.ratio)).permute(0, 3, 1, 2, 4)

    def groups_last(self, t_mQN: Tensor) -> Tensor:
        """[B, Q, G, N], the inverse of :meth:`group_first`."""
        return t_mQN.unflatten(0, (self.batch, self.groups)).transpose(1, 2)

    def spread(self, t_m: Tensor) -> Tensor:
        """From one per group to one per head."""
        return t_m if self.ratio == 1 else t_m.repeat_interleave(self.ratio, 0)

    def gather(self, t_n: Tensor) -> Tensor:
        """Sum over the heads of each group."""
        return t_n if self.ratio == 1 else t_n.unflatten(0, (-1, self.ratio)).sum(1)
