"""Cutting SSD operands into chunks of tokens, heads first, with the decays of each chunk.

Legend: B batch, L tokens, G B/C groups, R heads per group, P value width, N state size, Q tokens of a chunk, m = B·G,
n = B·G·R.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.decay import Decay, chunk_decay, lower_triangle


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
        self.x, self.log_a, self.B, self.C = x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN
        self.size = size
        self.dtype = dtype
        self.starts = range(0, self.length, size)
        self.D_n11 = None if D_H is None else D_H.to(dtype).repeat(self.batch)[:, None, None]
        self._tril_QQ = lower_triangle(size, dtype, x_BLGRP.device)
        self._run_nL = None if run_BL is None else run_BL.repeat_interleave(self.groups * self.ratio, 0)

    def at(self, start: int) -> tuple[slice, Chunk]:
        """Where the chunk that begins at a token lies, and its operands."""
        where = slice(start, min(start + self.size, self.length))
        B_mQN, C_mQN = self.group_first(self.B[:, where]), self.group_first(self.C[:, where])
        chunk = Chunk(
            self.head_first(self.x[:, where]), B_mQN, C_mQN, self.spread(B_mQN), self.spread(C_mQN), self._decay(where)
        )
        return where, chunk

    def _decay(self, where: slice) -> Decay:
        log_a_nQ = self.log_a[:, where].to(self.dtype).permute(0, 2, 3, 1).flatten(0, 2)
        return chunk_decay(log_a_nQ, self._tril_QQ, self._run_nL, where.start)

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
