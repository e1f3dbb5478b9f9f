"""The two matrices over some sequences and heads, one tile at a time.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, R heads per group, N state size, T query
rows of a tile, U key columns of a tile, u = B·K, m = B·G, n = B·H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.precision import LOG_FLOOR

_NEVER = -1e30
"""Score of a key that is not attended to; finite, so that a row without any key gives no NaN."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """How queries and keys become attention."""

    scale: float
    window: int | None
    softcap: float | None


class Slab:
    """Factors of the matrices; a tile is brought into the dtype of the islands, heads first, when it is asked for."""

    def __init__(
        self,
        q_BLHE: Tensor,
        k_BLKE: Tensor,
        C_BLGN: Tensor,
        B_BLGN: Tensor,
        log_a_BLH: Tensor,
        D_H: Tensor | None,
        run_BL: Tensor | None,
        real_BL: Tensor | None,
        teacher: Teacher,
        tile: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        self.batch, self.length, self.heads = q_BLHE.shape[:3]
        self.teacher, self.tile, self.dtype = teacher, tile, dtype
        key_heads, groups = k_BLKE.shape[2], C_BLGN.shape[2]
        self.ratio = self.heads // groups
        self._q_BLKRE, self._k_BLKE = q_BLHE.unflatten(2, (key_heads, -1)), k_BLKE
        self._C_BLGN, self._B_BLGN = C_BLGN, B_BLGN
        self.device = C_BLGN.device
        # In float32 differences of prefix sums far from the first token would lose the digits of single steps.
        wide = torch.float32 if log_a_BLH.device.type == "mps" else torch.float64
        self._S_nL = log_a_BLH.to(wide).clamp(min=LOG_FLOOR).cumsum(1).transpose(1, 2).flatten(0, 1)
        self.D_n = None if D_H is None else D_H.to(dtype).repeat(self.batch)
        self._run_BL, self._real_BL = run_BL, real_BL
        self._run_rows = None if run_BL is None else run_BL.tolist()

    def rows(self) -> Iterator[slice]:
        """Tiles of query rows."""
        for start in range(0, self.length, self.tile[0]):
            yield slice(start, min(start + self.tile[0], self.length))

    def columns(self, rows: slice) -> Iterator[slice]:
        """Tiles of key columns in which some entry of ``rows`` can be nonzero."""
        for start in range(0, rows.stop, self.tile[1]):
            columns = slice(start, min(start + self.tile[1], self.length))
            if not self._different_documents(rows, columns):
                yield columns

    def attended(self, rows: slice, columns: slice) -> bool:
        """Whether some query of ``rows`` lies within the window of some key of ``columns``."""
        window = self.teacher.window
        return window is None or rows.start - (columns.stop - 1) < window

    def queries(self, rows: slice) -> Tensor:
        """Scaled queries [u, (H/K)·T, E]; the query heads of one key head lie below one another."""
        q_BKRTE = self._q_BLKRE[:, rows].to(self.dtype).permute(0, 2, 3, 1, 4) * self.teacher.scale
        return q_BKRTE.flatten(2, 3).flatten(0, 1)

    def C(self, rows: slice) -> Tensor:
        """Output vectors [m, T, N]."""
        return self._heads_first(self._C_BLGN[:, rows])

    def B(self, columns: slice) -> Tensor:
        """Input vectors [m, U, N]."""
        return self._heads_first(self._B_BLGN[:, columns])

    def tokens_first(self, t_nT: Tensor) -> Tensor:
        """[B, T, H or G, ...] view of something heads first."""
        return t_nT.unflatten(0, (self.batch, -1)).transpose(1, 2)

    def lse(self, q_uTE: Tensor, rows: slice) -> Tensor:
        """Log of the softmax denominator [n, T], one pass over the key tiles with a running maximum."""
        top_nT = q_uTE.new_full((self.batch * self.heads, rows.stop - rows.start), _NEVER)
        sum_nT = torch.zeros_like(top_nT)
        for columns in self.columns(rows):
            if not self.attended(rows, columns):
                continue
            score_nTU = self._scores(q_uTE, columns)
            allowed_BTU = self._allowed(rows, columns, teacher=True)
            if allowed_BTU is not None:
                self._by_row(score_nTU).masked_fill_(~allowed_BTU[:, None], _NEVER)
            higher_nT = torch.maximum(top_nT, score_nTU.amax(-1))
            score_nTU.sub_(higher_nT[:, :, None]).clamp_(min=LOG_FLOOR).exp_()
            sum_nT = sum_nT * (top_nT - higher_nT).clamp_(min=LOG_FLOOR).exp_() + score_nTU.sum(-1)
            top_nT = higher_nT
        return top_nT + sum_nT.log()

    def attention(self, q_uTE: Tensor, lse_nT: Tensor, rows: slice, columns: slice) -> Tensor:
        """Tile of the teacher's matrix [n, T, U]."""
        score_nTU = self._scores(q_uTE, columns)
        P_nTU = score_nTU.sub_(lse_nT[:, :, None]).clamp_(LOG_FLOOR, 0.0).exp_()
        allowed_BTU = self._allowed(rows, columns, teacher=True)
        if allowed_BTU is not None:
            self._by_row(P_nTU).mul_(allowed_BTU[:, None])
        return P_nTU

    def decay(self, rows: slice, columns: slice) -> Tensor:
        """exp(S_t - S_s) [n, T, U], zero where the student's matrix is."""
        row_nT, column_nU = self._S_nL[:, rows], self._S_nL[:, columns]
        if columns.stop <= rows.start:
            origin_n1 = self._S_nL[:, rows.start : rows.start + 1]
            row_nT, column_nU = (row_nT - origin_n1).to(self.dtype), (column_nU - origin_n1).to(self.dtype)
        # On the diagonal neighbours meet behind whatever decays lie before them in the tile, so the difference comes
        # first: of sums rounded to float32 it would have few digits.
        exponent_nTU = (row_nT[:, :, None] - column_nU[:, None, :]).to(self.dtype)
        decay_nTU = exponent_nTU.clamp_(LOG_FLOOR, 0.0).exp_()
        allowed_BTU = self._allowed(rows, columns, teacher=False)
        if allowed_BTU is not None:
            self._by_row(decay_nTU).mul_(allowed_BTU[:, None])
        return decay_nTU

    def diagonal(self, tile_nTU: Tensor, rows: slice, columns: slice) -> Tensor | None:
        """View of the entries t = s of a tile [n, ·], None if it has none."""
        if columns.stop <= rows.start:
            return None
        return tile_nTU.diagonal(rows.start - columns.start, 1, 2)

    def real(self, rows: slice, columns: slice) -> Tensor | None:
        """Which tokens t = s of a tile are real [B, 1, ·], None if all are."""
        if self._real_BL is None:
            return None
        return self._real_BL[:, None, max(rows.start, columns.start) : min(rows.stop, columns.stop)]

    def grouped(self, tile_nTU: Tensor) -> Tensor:
        """[m, R, T, U] view, to meet what the heads of a group share."""
        return tile_nTU.unflatten(0, (-1, self.ratio))

    def _by_row(self, tile_nTU: Tensor) -> Tensor:
        return tile_nTU.unflatten(0, (self.batch, self.heads))

    def _scores(self, q_uTE: Tensor, columns: slice) -> Tensor:
        score = q_uTE @ self._heads_first(self._k_BLKE[:, columns]).mT
        cap = self.teacher.softcap
        if cap is not None:
            score = score.div_(cap).tanh_().mul_(cap)
        return score.view(self.batch * self.heads, -1, score.shape[-1])

    def _allowed(self, rows: slice, columns: slice, *, teacher: bool) -> Tensor | None:
        """Entries that can be nonzero [B or 1, T, U], None if all can."""
        allowed = None
        if columns.stop - 1 > rows.start:
            allowed = self._ones(rows, columns).tril(rows.start - columns.start)
        window = self.teacher.window
        if teacher and window is not None and rows.stop - 1 - columns.start >= window:
            near = self._ones(rows, columns).triu(rows.start - columns.start - window + 1)
            allowed = near if allowed is None else allowed & near
        if self._run_BL is not None:
            together = self._run_BL[:, rows, None] == self._run_BL[:, None, columns]
            allowed = together if allowed is None else allowed & together
        if self._real_BL is not None:
            both = self._real_BL[:, rows, None] & self._real_BL[:, None, columns]
            allowed = both if allowed is None else allowed & both
        return allowed

    def _ones(self, rows: slice, columns: slice) -> Tensor:
        shape = (1, rows.stop - rows.start, columns.stop - columns.start)
        return torch.ones(shape, dtype=torch.bool, device=self.device)

    def _different_documents(self, rows: slice, columns: slice) -> bool:
        if self._run_rows is None:
            return False
        return all(run[columns.stop - 1] < run[rows.start] for run in self._run_rows)

    def _heads_first(self, t_BTGN: Tensor) -> Tensor:
        return t_BTGN.to(self.dtype).transpose(1, 2).flatten(0, 1).contiguous()
