"""Choosing, merging and reading slots: the part of the memory in which every token depends on the one before it.

Legend: as in ``chunk.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.step import FAR
from xarch.kernels.slot_memory.tables import MemoryTables
from xarch.kernels.token_scan import over_tokens


class Arrivals(NamedTuple):
    """What leaves the window of each head at each token."""

    place_BKL: Tensor
    """Its place in the stream of windows and new tokens, int64."""
    free_BKL: Tensor
    """The slot that it takes while one is free, else the place that is never read; int64."""
    is_full_BKL: Tensor
    """Whether it meets full slots."""
    raw_BKLX: Tensor
    """The token as a slot of its own."""
    stored_BKLX: Tensor
    """The same in the precision of slots."""
    turned_BKLE: Tensor
    """Its stored key, rotated."""
    mask_BKLN: Tensor
    """What is added to scores of slots: 0 where they are in use."""


class SlotLoop:
    """The loop over the tokens of a chunk."""

    def __init__(self, layout: MemoryLayout, rotary: Rotary, tables: MemoryTables, arrivals: Arrivals) -> None:
        self.layout, self.rotary, self.tables, self.arrivals = layout, rotary, tables, arrivals
        self.dtype, self.device = tables.exact_age_P.dtype, tables.exact_age_P.device

    def run(
        self,
        held: dict[str, Tensor],
        q_BKGLE: Tensor,
        exact_BKGL1: Tensor,
        received_BKGLJ: Tensor,
        importance_BKJ: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read and write slots, whose state in ``held`` is replaced.

        Args:
            exact_BKGL1: logarithms of the sums of exponentials over exact entries.
            received_BKGLJ: attention among exact entries that counts for importance.
            importance_BKJ: before the first token.

        Returns:
            What slots add to the outputs [B, K, G, L, E], the share of exact entries [B, K, G, L, 1], and the
            importance after the last token [B, K, J].
        """
        width, arrivals = q_BKGLE.shape[-1], self.arrivals
        q_BKGLE = q_BKGLE * self.rotary.scale
        norm_BKGL1 = q_BKGLE.square().sum(-1, keepdim=True) / (2.0 * width)
        following_BKLX = torch.cat([arrivals.raw_BKLX[:, :, 1:], arrivals.raw_BKLX[:, :, -1:]], 2)
        tokens = [
            *(t.movedim(3, 1) for t in (q_BKGLE, norm_BKGL1, exact_BKGL1, received_BKGLJ)),
            *(t.movedim(2, 1)[..., None, None] for t in (arrivals.place_BKL, arrivals.free_BKL, arrivals.is_full_BKL)),
            *(
                t.movedim(2, 1)[:, :, :, None]
                for t in (following_BKLX, arrivals.stored_BKLX, arrivals.turned_BKLE, arrivals.mask_BKLN)
            ),
        ]
        own_KN = self.tables.slot_order_N < self.tables.slots_K[:, None]
        is_leaving_N = self.tables.slot_order_N == self.tables.slot_leaving_1
        constants = (own_KN[:, None], is_leaving_N, self.tables.slot_leaving_1)
        state = (*self._begin(held), importance_BKJ[:, :, None])
        rows_BLKGX, after = over_tokens(self._token, tokens, state, constants)
        self._end(held, after[0], after[2])
        rows_BKGLX = rows_BLKGX.movedim(1, 3)
        return rows_BKGLX[..., width : 2 * width], rows_BKGLX[..., -1:], after[3][:, :, 0]

    def _begin(self, held: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Slots [B, K, N, X] with the first token that leaves, their rotated keys, and importance [B, K, 1, N]."""
        take = self.tables.slot_take_KN.flatten()
        batch, heads = held["slot_keys"].shape[0], self.layout.heads

        def rows(t_BMX: Tensor) -> Tensor:
            return t_BMX.to(self.dtype).index_select(1, take).reshape(batch, heads, -1, t_BMX.shape[-1])

        key_BKNE, facts_BKN4 = rows(held["slot_keys"]), rows(held["slot_facts"].mT)
        count, position, variance, importance = facts_BKN4.split(1, -1)
        norm = key_BKNE.square().sum(-1, keepdim=True)
        slots_BKNX = torch.cat([key_BKNE, rows(held["slot_values"]), position, variance, count, norm], -1)
        is_leaving_N1 = (self.tables.slot_order_N == self.tables.slot_leaving_1)[:, None]
        slots_BKNX = torch.where(is_leaving_N1, self.arrivals.raw_BKLX[:, :, :1], slots_BKNX)
        return slots_BKNX, self.rotary.turn(key_BKNE, position[..., 0]), importance.mT

    def _end(self, held: dict[str, Tensor], slots_BKNX: Tensor, importance_BK1N: Tensor) -> None:
        width = held["slot_keys"].shape[-1]
        most_1 = self.tables.slot_leaving_1 + 2
        places_M = self.tables.slot_own_KM.argmax(0) * most_1 + self.tables.slot_place_M.long()
        slots_BMX = slots_BKNX.flatten(1, 2).index_select(1, places_M)
        importance_BM1 = importance_BK1N.mT.flatten(1, 2).index_select(1, places_M)
        held["slot_keys"] = slots_BMX[..., :width].to(held["slot_keys"].dtype)
        held["slot_values"] = slots_BMX[..., width : 2 * width].to(held["slot_values"].dtype)
        position, variance, count, _ = slots_BMX[..., 2 * width :].split(1, -1)
        held["slot_facts"] = torch.cat([count, position, variance, importance_BM1], -1).mT

    def _token(
        self,
        q_BKGE: Tensor,
        norm_BKG1: Tensor,
        exact_BKG1: Tensor,
        received_BKGJ: Tensor,
        place_BK11: Tensor,
        free_BK11: Tensor,
        is_full_BK11: Tensor,
        following_BK1X: Tensor,
        stored_BK1X: Tensor,
        turned_BK1E: Tensor,
        mask_BK1N: Tensor,
        state: tuple[Tensor, ...],
        own_K1N: Tensor,
        is_leaving_N: Tensor,
        leaving_1: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One token; its row is what slots give [.., X] and the share of exact entries."""
        slots_BKNX, keys_BKNE, importance_BK1N, stream_BK1J = state
        width, values = q_BKGE.shape[-1], slots_BKNX.shape[-1]
        own_BK11 = stream_BK1J.gather(-1, place_BK11)
        # The least important of the slots and the leaving token.
        costs_BK1N = torch.where(is_leaving_N, own_BK11, torch.where(own_K1N, importance_BK1N, FAR))
        b_BK11 = costs_BK1N.argmin(-1, keepdim=True)
        if self.layout.write == "merge":
            first_BK11, second_BK11, merged_BK1X, importance_BK11 = self._merged(
                costs_BK1N, b_BK11, slots_BKNX, own_K1N | is_leaving_N, leaving_1
            )
            turned = self._turned(merged_BK1X, width)
            first_BK11 = torch.where(is_full_BK11, first_BK11, free_BK11)
            second_BK11 = torch.where(is_full_BK11, second_BK11, leaving_1 + 1)
            places_BK21 = torch.cat([first_BK11, second_BK11], 2)
            rows_BK2X = torch.cat([torch.where(is_full_BK11, merged_BK1X, stored_BK1X), stored_BK1X], 2)
            turned_BK2E = torch.cat([torch.where(is_full_BK11, turned, turned_BK1E), turned_BK1E], 2)
            gains_BK12 = torch.cat([torch.where(is_full_BK11, importance_BK11, own_BK11), own_BK11], 3)
        else:
            b_BK11 = torch.where(b_BK11 == leaving_1, leaving_1 + 1, b_BK11)
            places_BK21 = torch.where(is_full_BK11, b_BK11, free_BK11)
            rows_BK2X, turned_BK2E, gains_BK12 = stored_BK1X, turned_BK1E, own_BK11
        at_BK31 = torch.cat([places_BK21, leaving_1.expand_as(b_BK11)], 2)
        slots_BKNX = slots_BKNX.scatter(
            2, at_BK31.expand(-1, -1, -1, values), torch.cat([rows_BK2X, following_BK1X], 2)
        )
        keys_BKNE = keys_BKNE.scatter(2, places_BK21.expand(-1, -1, -1, width), turned_BK2E)
        importance_BK1N = importance_BK1N.scatter(3, places_BK21.mT, gains_BK12)

        u_BK1N, count_BK1N = slots_BKNX[..., 2 * width + 1 : 2 * width + 3].mT.split(1, 2)
        scores_BKGN = q_BKGE @ keys_BKNE.mT
        if self.rotary.softcap is not None:
            scores_BKGN = self.rotary.softcap * torch.tanh(scores_BKGN / self.rotary.softcap)
        spread_BKGN = (norm_BKG1 * u_BK1N).clamp_max(self.layout.cap)
        scores_BKGN = scores_BKGN + spread_BKGN + (count_BK1N.clamp_min(1.0).log() + mask_BK1N)
        weights = torch.cat([scores_BKGN, exact_BKG1], -1).softmax(-1)
        weights_BKGN, exact_BKG1 = weights[..., :-1], weights[..., -1:]
        row = torch.cat([weights_BKGN @ slots_BKNX, exact_BKG1], -1)
        importance_BK1N = importance_BK1N * self.layout.decay + weights_BKGN.sum(2, keepdim=True)
        stream_BK1J = stream_BK1J * self.layout.decay + exact_BKG1.mT @ received_BKGJ
        return row, (slots_BKNX, keys_BKNE, importance_BK1N, stream_BK1J)

    def _merged(
        self, costs_BK1N: Tensor, b_BK11: Tensor, slots_BKNX: Tensor, candidate_K1N: Tensor, leaving_1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b merged into the candidate with the nearest key: (its place, that of the leaving token where it gets one,
        the merged slot [B, K, 1, X], its importance)."""
        values = slots_BKNX.shape[-1]
        width = (values - 4) // 2
        b_BK1X = _taken(slots_BKNX, b_BK11)
        # |k|² - 2 k · b, which orders candidates as the distance does.
        twice = self._vector([-2.0] * width + [0.0] * (values - width))
        norm = self._vector([0.0] * (values - 1) + [1.0])
        apart_BK1N = (b_BK1X * twice + norm) @ slots_BKNX.mT
        apart_BK1N = torch.where(candidate_K1N, apart_BK1N, FAR).scatter(
            -1, b_BK11, torch.full_like(costs_BK1N[..., :1], FAR)
        )
        a_BK11 = apart_BK1N.argmin(-1, keepdim=True)
        a_BK1X = _taken(slots_BKNX, a_BK11)
        step_BK1X = b_BK1X - a_BK1X
        count = slice(values - 2, values - 1)
        n_b, n = b_BK1X[..., count], a_BK1X[..., count] + b_BK1X[..., count]
        # Slots that were never written count zero tokens; what is computed for them is not used.
        f = n_b / n.clamp_min(1.0)
        mean_BK1X = a_BK1X + f * step_BK1X
        pair, position, u, _, _ = mean_BK1X.split([2 * width, 1, 1, 1, 1], -1)
        if self.layout.stored == "float16":
            pair = pair.half().to(self.dtype)
        d_BK11 = step_BK1X[..., :width].square().sum(-1, keepdim=True)
        u = u + (f - f * f) * d_BK11
        merged = torch.cat([pair, position, u, n, pair[..., :width].square().sum(-1, keepdim=True)], -1)
        gain = costs_BK1N.gather(-1, a_BK11) + costs_BK1N.gather(-1, b_BK11)
        # The merged entry takes the place of a, or of b where a is the leaving token; which then has no place itself.
        low, high = torch.minimum(a_BK11, b_BK11), torch.maximum(a_BK11, b_BK11)
        both = high < leaving_1
        return torch.where(both, a_BK11, low), torch.where(both, b_BK11, leaving_1 + 1), merged, gain

    def _turned(self, slot_BK1X: Tensor, width: int) -> Tensor:
        """Rotated keys of slots: one product with a permutation in place of slices."""
        pairs, key = len(self.rotary.frequencies), slot_BK1X[..., :width]
        if pairs == 0:
            return key
        rest = width - 2 * pairs
        angle = slot_BK1X[..., 2 * width : 2 * width + 1] * self._vector([*self.rotary.frequencies * 2, *[0.0] * rest])
        gain = self._vector([self.rotary.gain] * (2 * pairs) + [1.0] * rest)
        swap = [[0.0] * width for _ in range(width)]
        for i in range(pairs):
            swap[pairs + i][i], swap[i][pairs + i] = -self.rotary.gain, self.rotary.gain
        turned: Tensor = key * (angle.cos() * gain) + (key @ self._vector(swap)) * angle.sin()
        return turned

    def _vector(self, values: list[float] | list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)


def _taken(slots_BKNX: Tensor, place_BK11: Tensor) -> Tensor:
    return slots_BKNX.gather(2, place_BK11.expand(-1, -1, -1, slots_BKNX.shape[-1]))
