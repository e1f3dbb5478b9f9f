"""The memory for several tokens at once: attention to exact entries in one product, slots token by token.

What leaves a window, and what sinks and windows hold at any token, is known beforehand; what slots hold depends on the
attention that each token paid to them. So scores of exact entries, rotations and roundings are computed for all tokens
together, and only choosing, merging and reading slots is a loop. Entries of each head are rows of their own, as many as
its largest head has.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share a key/value head, E head width, S sinks, R
longest window, J = R + L entries of windows and new tokens, C = S + J, N slots of the largest head, the place of the
leaving token, and one that is never read; X = 2 E + 4 values of a slot: key, value, position, variance, count, |key|².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import MASKED, Rotary
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.slots import Arrivals, SlotLoop
from xarch.kernels.slot_memory.step import quantised
from xarch.kernels.slot_memory.tables import MemoryTables


def slot_memory_chunk(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    state: tuple[Tensor, ...],
    tables: MemoryTables,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`, with at least one token; memory O(L (R + L))."""
    dtype = tables.exact_age_P.dtype
    held = dict(zip(layout.state(q_BLHE.shape[-1]), state, strict=True))
    chunk = _Chunk(layout, rotary, tables, held, positions_BL.to(dtype))
    heads_BLHE = chunk.run(q_BLHE.to(dtype), k_BLKE.to(dtype), v_BLKE.to(dtype))
    return heads_BLHE.to(q_BLHE.dtype), tuple(held.values())


@dataclass(frozen=True)
class _Entries:
    """Keys or values of all exact entries.

    Attributes:
        sinks_BKSE, stream_BKJE: as they are stored: sinks before the first token; windows, then new tokens.
        sink_scales_BKS1, scales_BKJ1: of numbers in 8 bits.
    """

    sinks_BKSE: Tensor
    stream_BKJE: Tensor
    sink_scales_BKS1: Tensor | None = None
    scales_BKJ1: Tensor | None = None

    def stream(self) -> Tensor:
        return self.stream_BKJE if self.scales_BKJ1 is None else self.stream_BKJE * self.scales_BKJ1

    def all(self) -> Tensor:
        """All entries [B, K, C, E] as attention reads them."""
        sinks = self.sinks_BKSE if self.sink_scales_BKS1 is None else self.sinks_BKSE * self.sink_scales_BKS1
        return torch.cat([sinks, self.stream()], 2)


class _Chunk:
    """One chunk; ``held`` is the state before it, and after :meth:`run` the state after it."""

    def __init__(
        self, layout: MemoryLayout, rotary: Rotary, tables: MemoryTables, held: dict[str, Tensor], t_BL: Tensor
    ) -> None:
        self.layout, self.rotary, self.tables, self.held, self.t_BL = layout, rotary, tables, held, t_BL
        self.dtype, self.batch, self.length = t_BL.dtype, t_BL.shape[0], t_BL.shape[1]
        self.l_L = torch.tensor([float(i) for i in range(self.length)], dtype=self.dtype, device=t_BL.device)
        self.start_BL = t_BL - self.l_L
        """Where the document of a token begins."""
        self.reach_1 = tables.reach_age_R[:1] + 1.0

    def run(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor) -> Tensor:
        """Return the heads' outputs."""
        layout, heads = self.layout, self.layout.heads
        keys, values = self._entries("key", k_BLKE), self._entries("value", v_BLKE)
        q_BKGLE = q_BLHE.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)
        near_BKLJ, age_LJ = self._near()
        scores = self.rotary.scores(q_BKGLE.flatten(2, 3) @ keys.all().mT)
        scores_BKGLC = scores.reshape(*q_BKGLE.shape[:4], -1)
        scores_BKGLC = torch.where(self._visible(near_BKLJ)[:, :, None], scores_BKGLC, MASKED)
        top_BKGL1 = scores_BKGLC.amax(-1, keepdim=True)
        raised_BKGLC = (scores_BKGLC - top_BKGL1).exp()
        sum_BKGL1 = raised_BKGLC.sum(-1, keepdim=True)
        weights_BKGLC = raised_BKGLC / sum_BKGL1
        exact_BKGLE = (weights_BKGLC.flatten(2, 3) @ values.all()).reshape(q_BKGLE.shape)
        importance_BKJ = None
        if layout.slot_total:
            counts_BKLJ = near_BKLJ & (age_LJ >= layout.age)
            received_BKGLJ = torch.where(counts_BKLJ[:, :, None], weights_BKGLC[..., layout.sinks :], 0.0)
            arrivals = self._arrivals(keys, values)
            loop = SlotLoop(layout, self.rotary, self.tables, arrivals)
            slots_BKGLE, exact_BKGL1, importance_BKJ = loop.run(
                self.held, q_BKGLE, top_BKGL1 + sum_BKGL1.log(), received_BKGLJ, self._importance()
            )
            exact_BKGLE = slots_BKGLE + exact_BKGL1 * exact_BKGLE
        self._store(keys, values, importance_BKJ)
        return exact_BKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def _entries(self, name: str, new_BLKE: Tensor) -> _Entries:
        layout = self.layout
        pool_BPE = self.held[f"exact_{name}s"].to(self.dtype)
        new_BKLE, scale_BKL1 = new_BLKE.transpose(1, 2), None
        if layout.exact == "int8":
            scale_BKL1, new_BKLE = quantised(new_BKLE)
        elif layout.exact == "float16":
            new_BKLE = new_BKLE.half().to(self.dtype)
        found = _Entries(self._sinks(pool_BPE), torch.cat([self._windows(pool_BPE), new_BKLE], 2))
        if scale_BKL1 is None:
            return found
        pool_BP1 = self._fact(f"{name}_scale")
        scales_BKJ1 = torch.cat([self._windows(pool_BP1), scale_BKL1], 2)
        return _Entries(found.sinks_BKSE, found.stream_BKJE, self._sinks(pool_BP1), scales_BKJ1)

    def _sinks(self, pool_BPX: Tensor) -> Tensor:
        """Sinks [B, K, S, X] of a pool of exact entries."""
        heads, sinks = self.layout.heads, self.layout.sinks
        return pool_BPX[:, : heads * sinks].reshape(self.batch, heads, sinks, pool_BPX.shape[-1])

    def _windows(self, pool_BPX: Tensor) -> Tensor:
        """Windows [B, K, R, X] of a pool, oldest entry first; what lies beyond a shorter window is never read."""
        taken = pool_BPX.index_select(1, self.tables.reach_place_KR.flatten())
        return taken.reshape(self.batch, self.layout.heads, -1, pool_BPX.shape[-1])

    def _fact(self, name: str) -> Tensor:
        """A row of ``exact_facts`` as [B, P, 1]."""
        return self.held["exact_facts"][:, self.layout.exact_facts.index(name), :, None].to(self.dtype)

    def _importance(self) -> Tensor:
        """Importance [B, K, J]; new tokens have none."""
        old_BKR1 = self._windows(self._fact("importance"))
        return torch.cat([old_BKR1[..., 0], old_BKR1.new_zeros(self.batch, self.layout.heads, self.length)], 2)

    def _near(self) -> tuple[Tensor, Tensor]:
        """Which windows hold which entries at which token [B, K, L, J], and ages of entries [L, J]."""
        l_L1 = self.l_L[:, None]
        age_LJ = torch.cat([l_L1 + 1.0 + self.tables.reach_age_R, l_L1 - self.l_L], 1)
        held_KLJ = (age_LJ < self.tables.window_K[:, None, None]) & (age_LJ >= 0)
        own_BLJ = age_LJ <= self.t_BL[:, :, None] - self.layout.sinks
        return held_KLJ & own_BLJ[:, None], age_LJ

    def _visible(self, near_BKLJ: Tensor) -> Tensor:
        """Which exact entries each token attends to [B, K, L, C]."""
        sinks = self.layout.sinks
        if sinks == 0:
            return near_BKLJ
        first_B1, start_BL1 = self.t_BL[:, :1], self.start_BL[:, :, None]
        places_S = torch.tensor([float(i) for i in range(sinks)], dtype=self.dtype, device=self.t_BL.device)
        old_BLS = (start_BL1 == first_B1[:, :, None]) & (places_S < first_B1)[:, None]
        begins_BLL = (start_BL1 == self.start_BL[:, None]) & (self.t_BL < sinks)[:, None]
        new_BLL = begins_BLL & (self.l_L <= self.l_L[:, None])
        old = near_BKLJ.shape[-1] - self.length
        new_BKLL = near_BKLJ[..., old:] | new_BLL[:, None]
        old_BKLS = old_BLS[:, None].expand(-1, self.layout.heads, -1, -1)
        return torch.cat([old_BKLS, near_BKLJ[..., :old], new_BKLL], -1)

    def _arrivals(self, keys: _Entries, values: _Entries) -> Arrivals:
        """What leaves the windows, and where it goes."""
        tables, stored = self.tables, self.layout.stored
        place_KL = (self.reach_1 + self.l_L - tables.window_K[:, None]).long()
        taken_BKLE = place_KL[None, :, :, None].expand(self.batch, -1, -1, keys.stream_BKJE.shape[-1])
        p_BKL = (self.t_BL[:, None] - tables.window_K[:, None]).contiguous()
        key_BKLE = self.rotary.turn(keys.stream().gather(2, taken_BKLE), p_BKL, back=True)
        value_BKLE = values.stream().gather(2, taken_BKLE)
        kept = [t.half().to(self.dtype) if stored == "float16" else t for t in (key_BKLE, value_BKLE)]
        before_BKL = p_BKL - self.layout.sinks
        slots_K1, leaving_1 = tables.slots_K[:, None], tables.slot_leaving_1
        is_full_BKL = (before_BKL >= slots_K1) & (slots_K1 > 0)
        is_free_BKL = (before_BKL >= 0) & (before_BKL < slots_K1)
        used_BKLN = (tables.slot_order_N < slots_K1[..., None]) & (tables.slot_order_N <= before_BKL[..., None])
        return Arrivals(
            place_KL.expand(self.batch, -1, -1),
            torch.where(is_free_BKL, before_BKL.long(), leaving_1 + 1),
            is_full_BKL,
            self._row(key_BKLE, value_BKLE, p_BKL),
            self._row(kept[0], kept[1], p_BKL),
            self.rotary.turn(kept[0], p_BKL),
            torch.where(used_BKLN, 0.0, MASKED),
        )

    @staticmethod
    def _row(key_BKLE: Tensor, value_BKLE: Tensor, p_BKL: Tensor) -> Tensor:
        norm_BKL = key_BKLE.square().sum(-1)
        facts_BKL4 = torch.stack([p_BKL, torch.zeros_like(p_BKL), torch.ones_like(p_BKL), norm_BKL], -1)
        return torch.cat([key_BKLE, value_BKLE, facts_BKL4], -1)

    def _store(self, keys: _Entries, values: _Entries, importance_BKJ: Tensor | None) -> None:
        """Write the exact entries after the last token into the state."""
        layout, tables, held = self.layout, self.tables, self.held
        sinks = layout.heads * layout.sinks
        owner_W = tables.exact_own_KP[:, sinks:].argmax(0)
        total_1 = (self.reach_1 + self.length).long()
        places_W = owner_W * total_1 + (total_1 - 1 - tables.exact_age_P[sinks:].long())
        # Sinks that this chunk brings, of the document that its last token belongs to.
        places_S = torch.tensor([float(i) for i in range(layout.sinks)], dtype=self.dtype, device=self.t_BL.device)
        is_last_BL = self.start_BL == self.start_BL[:, -1:]
        hit_BSL = (self.t_BL[:, None] == places_S[:, None]) & is_last_BL[:, None]
        is_new_BKS1 = hit_BSL.any(-1)[:, None, :, None].expand(-1, layout.heads, -1, -1)

        def pool(stream_BKJX: Tensor, sinks_BKSX: Tensor | None) -> Tensor:
            window_BWX = stream_BKJX.flatten(1, 2).index_select(1, places_W)
            if layout.sinks == 0:
                return window_BWX
            if sinks_BKSX is None:
                return torch.cat([window_BWX.new_zeros(self.batch, sinks, window_BWX.shape[-1]), window_BWX], 1)
            new_BKLX = stream_BKJX[:, :, -self.length :]
            sinks_BKSX = torch.where(is_new_BKS1, hit_BSL[:, None].to(self.dtype) @ new_BKLX, sinks_BKSX)
            return torch.cat([sinks_BKSX.flatten(1, 2), window_BWX], 1)

        rows = {}
        for name, entries in (("key", keys), ("value", values)):
            kind = held[f"exact_{name}s"].dtype
            held[f"exact_{name}s"] = pool(entries.stream_BKJE, entries.sinks_BKSE).to(kind)
            if entries.scales_BKJ1 is not None:
                rows[f"{name}_scale"] = pool(entries.scales_BKJ1, entries.sink_scales_BKS1)[..., 0]
        if importance_BKJ is not None:
            rows["importance"] = pool(importance_BKJ[..., None], None)[..., 0]
        if rows:
            held["exact_facts"] = torch.stack([rows[name] for name in layout.exact_facts], 1)
