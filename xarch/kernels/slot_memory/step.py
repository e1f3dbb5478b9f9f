"""The memory for one token: what a generating student runs and exporters record.

The entries of all heads lie in one pool, sections one after another; constant masks keep heads apart. So the number of
operators does not depend on the number of heads, and the tables hold every size (see ``tables.py``).

Legend: B batch, H heads, K key/value heads, E head width, F rotated pairs, P exact entries, M slots of all heads,
N = M + 1 candidates, R rows of facts, X = 2 E + 4 values of a slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import MASKED, Rotary, cast
from xarch.kernels.precision import island_dtype, without_autocast
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.tables import MemoryTables, memory_tables

FAR = 1e30
"""Importance and distance of what is no candidate."""


def slot_memory_step(
    q_BHE: Tensor,
    k_BKE: Tensor,
    v_BKE: Tensor,
    positions_B: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    state: tuple[Tensor, ...],
    tables: MemoryTables | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One token of :func:`xarch.kernels.slot_memory`.

    Args:
        q_BHE, k_BKE, v_BKE: rotated query and key, and value.
        positions_B: place of the token in its document.
        layout, rotary: as there.
        state: before the token.
        tables: those of ``layout``, from :func:`memory_tables`; a caller with many tokens makes them once.

    Returns:
        heads [B, H, E] in the dtype of ``q_BHE``, and the state after the token.
    """
    with without_autocast(q_BHE.device):
        dtype = island_dtype(q_BHE, *state)
        step = _Step(layout, rotary, tables or memory_tables(layout, dtype, q_BHE.device))
        q, k, v, t = (cast(x, dtype) for x in (q_BHE, k_BKE, v_BKE, positions_B))
        heads_BHE, state = step.run(q, k, v, t, state)
        return cast(heads_BHE, q_BHE.dtype), state


class _Step:
    """One step, with the tables of its layout."""

    def __init__(self, layout: MemoryLayout, rotary: Rotary, tables: MemoryTables) -> None:
        self.layout, self.rotary, self.tables = layout, rotary, tables
        self.dtype, self.device = tables.exact_age_P.dtype, tables.exact_age_P.device
        self.sinks = layout.heads * layout.sinks
        self.exact_KP, self.slots_KM = tables.exact_own_KP > 0, tables.slot_own_KM > 0
        self.ages_W = tables.exact_age_P[self.sinks :]

    def run(
        self, q_BHE: Tensor, k_BKE: Tensor, v_BKE: Tensor, t_B: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :func:`slot_memory_step`; all but the state in one dtype."""
        layout = self.layout
        held = dict(zip(layout.state(q_BHE.shape[-1]), state, strict=True))
        t_B1 = t_B[:, None]
        if layout.slot_total:
            facts_BXM = self._write(held, t_B1)
        self._push(held, k_BKE, v_BKE, t_B1)
        keys_BPE, values_BPE = self._exact(held, "key"), self._exact(held, "value")
        group = q_BHE.shape[1] // layout.heads
        scores_BHP = self.rotary.scores(q_BHE @ keys_BPE.mT)
        scores_BHN = torch.where(self._per_head(self.exact_KP, group, self._present(t_B1)), scores_BHP, MASKED)
        if layout.slot_total:
            slots = self._read(q_BHE, facts_BXM, t_B1, group)
            scores_BHN = torch.cat([scores_BHN, slots], 2)
            values_BPE = torch.cat([values_BPE, facts_BXM[:, :, self._width(q_BHE) : -4]], 1)
        weights_BHN = scores_BHN.softmax(-1)
        if layout.slot_total:
            self._receive(held, facts_BXM, weights_BHN.sum(1))
        return weights_BHN @ values_BPE, tuple(held.values())

    def _write(self, held: dict[str, Tensor], t_B1: Tensor) -> Tensor:
        """Write what leaves the window; return the slots as [B, M, X] = key, value, count, position, u, importance."""
        layout = self.layout
        slots_BMX = torch.cat(
            [
                self._wide(held["slot_keys"]),
                self._wide(held["slot_values"]),
                self._wide(held["slot_facts"]).mT,
            ],
            -1,
        )
        tables, oldest_K = self.tables, self.tables.oldest_K
        p_BK = t_B1 - tables.window_K
        rotated_BKE = self._exact(held, "key").index_select(1, oldest_K)
        width = rotated_BKE.shape[-1]
        importance_BK = self._wide(held["exact_facts"][:, 0]).index_select(1, oldest_K)
        leaving_BKX = torch.cat(
            [
                self.rotary.turn(rotated_BKE, p_BK, back=True),
                self._exact(held, "value").index_select(1, oldest_K),
                torch.stack([torch.ones_like(p_BK), p_BK, torch.zeros_like(p_BK), importance_BK], -1),
            ],
            -1,
        )
        # How many tokens had left the window before: the next free slot, while there is one.
        before_BK = p_BK - layout.sinks
        before_BM = t_B1 - tables.slot_window_M - layout.sinks
        free_BM = (tables.slot_place_M == before_BM).to(self.dtype)
        full_BK1 = ((before_BK >= tables.slots_K) & (tables.slots_K > 0))[:, :, None].to(self.dtype)
        mine_KM = self.slots_KM
        candidates_BKN = torch.cat([_or_far(mine_KM, slots_BMX[..., -1][:, None]), importance_BK[:, :, None]], 2)
        least_BKN = self._one_hot(candidates_BKN)
        least_BKM = least_BKN[..., :-1]
        placed_BKM = least_BKM * full_BK1
        merged_BMX = None
        if layout.write == "merge":
            b_BKX = _pick(least_BKN, slots_BMX, leaving_BKX)
            b_BME = tables.slot_own_KM.mT @ b_BKX[..., :width]
            apart_BM = (slots_BMX[..., :width] - b_BME).square().sum(-1)
            apart_BK1 = (leaving_BKX[..., :width] - b_BKX[..., :width]).square().sum(-1, keepdim=True)
            apart_BKN = torch.cat([_or_far(mine_KM, apart_BM[:, None]), apart_BK1], 2)
            near_BKN = self._one_hot(torch.where(least_BKN > 0, FAR, apart_BKN))
            near_BKM, stays_BK1 = near_BKN[..., :-1], 1.0 - near_BKN[..., -1:]
            a_BKX = _pick(near_BKN, slots_BMX, leaving_BKX)
            d_BK1 = (near_BKN * apart_BKN).sum(-1, keepdim=True)
            # Where the token itself is the nearest, the merged entry takes the place of the least important.
            to_BKM = (near_BKM + (1.0 - stays_BK1) * least_BKM) * full_BK1
            placed_BKM = placed_BKM * stays_BK1
            merged_BMX = to_BKM.mT @ _merged(a_BKX, b_BKX, d_BK1)
            written_BM = to_BKM.sum(1)
        fresh_BKM = placed_BKM + free_BM[:, None] * tables.slot_own_KM
        kept_BM1 = 1.0 - fresh_BKM.sum(1)[:, :, None]
        fresh_BMX = fresh_BKM.mT @ leaving_BKX
        if merged_BMX is not None:
            kept_BM1, fresh_BMX = kept_BM1 - written_BM[:, :, None], fresh_BMX + merged_BMX
        slots_BMX = slots_BMX * kept_BM1 + fresh_BMX
        held["slot_keys"] = cast(slots_BMX[..., :width], held["slot_keys"].dtype)
        held["slot_values"] = cast(slots_BMX[..., width:-4], held["slot_values"].dtype)
        # What is read is what is stored.
        rounded = [self._wide(held["slot_keys"]), self._wide(held["slot_values"]), slots_BMX[..., -4:]]
        return torch.cat(rounded, -1) if held["slot_keys"].dtype == torch.float16 else slots_BMX

    def _push(self, held: dict[str, Tensor], k_BKE: Tensor, v_BKE: Tensor, t_B1: Tensor) -> None:
        """Move every window on by one token, and keep the first tokens."""
        rows: dict[str, Tensor] = {}
        if "importance" in self.layout.exact_facts:
            rows["importance"] = torch.zeros_like(k_BKE[..., 0])
        for name, new_BKE in (("key", k_BKE), ("value", v_BKE)):
            if self.layout.exact == "int8":
                scale_BK1, new_BKE = quantised(new_BKE)
                rows[f"{name}_scale"] = scale_BK1[..., 0]
            pool_BPE = held[f"exact_{name}s"]
            moved_BPE = self._moved(self._wide(pool_BPE), new_BKE, t_B1)
            held[f"exact_{name}s"] = cast(moved_BPE, pool_BPE.dtype)
        if rows:
            facts_BRP = held["exact_facts"]
            new_BKR = torch.stack([rows[name] for name in self.layout.exact_facts], -1)
            held["exact_facts"] = self._moved(self._wide(facts_BRP.mT), new_BKR, t_B1).mT

    def _moved(self, pool_BPX: Tensor, new_BKX: Tensor, t_B1: Tensor) -> Tensor:
        new_BPX = self.tables.exact_own_KP.mT @ new_BKX
        window_BWX = pool_BPX[:, self.sinks :]
        moved_BWX = torch.cat([window_BWX[:, 1:], window_BWX[:, :1]], 1)
        moved_BWX = torch.where((self.ages_W == 0)[:, None], new_BPX[:, self.sinks :], moved_BWX)
        if self.sinks == 0:
            return moved_BWX
        now_BS1 = (self._sink_places() == t_B1)[:, :, None]
        sinks_BSX = torch.where(now_BS1, new_BPX[:, : self.sinks], pool_BPX[:, : self.sinks])
        return torch.cat([sinks_BSX, moved_BWX], 1)

    def _exact(self, held: dict[str, Tensor], name: str) -> Tensor:
        """Exact keys or values [B, P, E]."""
        pool_BPE = self._wide(held[f"exact_{name}s"])
        if self.layout.exact != "int8":
            return pool_BPE
        scale_BP = self._wide(held["exact_facts"][:, self.layout.exact_facts.index(f"{name}_scale")])
        return pool_BPE * scale_BP[:, :, None]

    def _present(self, t_B1: Tensor) -> Tensor:
        """Which exact entries hold a token of this document [B, P]."""
        window_BW = t_B1 - self.ages_W >= self.layout.sinks
        return window_BW if self.sinks == 0 else torch.cat([self._sink_places() <= t_B1, window_BW], 1)

    def _read(self, q_BHE: Tensor, slots_BMX: Tensor, t_B1: Tensor, group: int) -> Tensor:
        """Scores of the slots [B, H, M]."""
        width = self._width(q_BHE)
        keys_BME = self.rotary.turn(slots_BMX[..., :width], slots_BMX[..., -3])
        count_BM, u_BM = slots_BMX[..., -4], slots_BMX[..., -2]
        norm_BH1 = q_BHE.square().sum(-1, keepdim=True)
        bias_BHM = (norm_BH1 * u_BM[:, None] * (self.rotary.scale**2 / (2 * width))).clamp_max(self.layout.cap)
        scores_BHM = self.rotary.scores(q_BHE @ keys_BME.mT) + count_BM.clamp_min(1.0).log()[:, None] + bias_BHM
        used_BM = self.tables.slot_place_M <= t_B1 - self.tables.slot_window_M - self.layout.sinks
        return torch.where(self._per_head(self.slots_KM, group, used_BM), scores_BHM, MASKED)

    def _receive(self, held: dict[str, Tensor], slots_BMX: Tensor, attention_BN: Tensor) -> None:
        """Update importance by the attention that each entry received from the heads that share it."""
        layout = self.layout
        exact_BP = self._wide(held["exact_facts"][:, 0])
        total = exact_BP.shape[1]
        # What lies in the window for less than `age` tokens; sinks never.
        counts_P = (self.tables.exact_age_P >= layout.age).to(self.dtype)
        exact_BP = (exact_BP * layout.decay + attention_BN[:, :total]) * counts_P
        kept = held["exact_facts"]
        held["exact_facts"] = torch.cat([cast(exact_BP[:, None], kept.dtype), kept[:, 1:]], 1)
        importance_BM = slots_BMX[..., -1] * layout.decay + attention_BN[:, total:]
        facts_BM4 = torch.cat([slots_BMX[..., -4:-1], importance_BM[:, :, None]], -1)
        held["slot_facts"] = facts_BM4.mT

    def _wide(self, t: Tensor) -> Tensor:
        return cast(t, self.dtype)

    def _per_head(self, mine_KN: Tensor, group: int, present_BN: Tensor) -> Tensor:
        return mine_KN.repeat_interleave(group, 0) & present_BN[:, None]

    def _sink_places(self) -> Tensor:
        places = [float(i) for _ in range(self.layout.heads) for i in range(self.layout.sinks)]
        return torch.tensor(places, dtype=self.dtype, device=self.device)

    def _one_hot(self, costs_BKN: Tensor) -> Tensor:
        """One at the smallest cost, the first of equal ones."""
        places_N = torch.cat([self.tables.slot_index_M, self.tables.slot_last_1])
        return (costs_BKN.argmin(-1, keepdim=True) == places_N).to(self.dtype)

    @staticmethod
    def _width(q_BHE: Tensor) -> int:
        return q_BHE.shape[-1]


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [..., 1] and whole numbers from -127 to 127 [..., E] whose product is near x [..., E]."""
    scale = (x.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-30)
    return scale, (x / scale).round()


def _or_far(mine_KM: Tensor, costs_B1M: Tensor) -> Tensor:
    return torch.where(mine_KM, costs_B1M, FAR)


def _pick(one_hot_BKN: Tensor, slots_BMX: Tensor, leaving_BKX: Tensor) -> Tensor:
    return one_hot_BKN[..., :-1] @ slots_BMX + one_hot_BKN[..., -1:] * leaving_BKX


def _merged(a_BKX: Tensor, b_BKX: Tensor, apart_BK1: Tensor) -> Tensor:
    """b merged into a."""
    n_a, n_b = a_BKX[..., -4:-3], b_BKX[..., -4:-3]
    # Slots that were never written count zero tokens; what is computed for them is thrown away.
    f = n_b / (n_a + n_b).clamp_min(1.0)
    mean = a_BKX + f * (b_BKX - a_BKX)
    u = mean[..., -2:-1] + f * (1.0 - f) * apart_BK1
    importance = a_BKX[..., -1:] + b_BKX[..., -1:]
    return torch.cat([mean[..., :-4], n_a + n_b, mean[..., -3:-2], u, importance], -1)
