"""The memory as a state: one token, all tokens between two folds, and the fold. What exporters record.

Every head has tensors of its own, as long as it needs them. No operator depends on their sizes, which the tables hold.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width, N slots of a head, W its
window, F tokens of a fold, M = N + F, C = N + W + F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.bounded_attention import MASKED, Rotary, cast
from xarch.kernels.folded_memory.folding import Entries, folded
from xarch.kernels.folded_memory.layout import FoldedLayout, FoldedRanges
from xarch.kernels.folded_memory.plain import numbers, slot_bias
from xarch.kernels.folded_memory.runtime import grouped_query_attention
from xarch.kernels.folded_memory.tables import FoldedTables, HeadTables, folded_tables
from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import island_dtype, without_autocast

State = tuple[Tensor, ...]


def folded_memory_step(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
    state: State,
    tables: FoldedTables | None = None,
) -> tuple[Tensor, State]:
    """Attend from tokens that lie between two folds.

    Args:
        q_BLHE, k_BLKE: rotated queries and keys of one token, or of ``layout.fold`` whose first is at a multiple of it.
        v_BLKE: values.
        positions_BL: consecutive places in the document.
        state: before the tokens, in the order of ``layout.state``; if the first of them is at a multiple of
            ``layout.fold``, :func:`fold_memory` has been called for it.
        tables: those of ``layout``. With them the operators that an exporter records do not depend on its sizes.

    Returns:
        heads [B, L, H, E], and the state after the tokens.
    """
    if q_BLHE.shape[1] not in (1, layout.fold):
        raise UsageError(f"folded_memory_step: want 1 token or {layout.fold}, got {q_BLHE.shape[1]}")
    with without_autocast(q_BLHE.device):
        memory = _Memory(layout, rotary, ranges, state, island_dtype(q_BLHE, state[-1]), tables)
        if graph_form("attention") == "runtime":
            return memory.attend_in_runtime(q_BLHE, k_BLKE, v_BLKE, memory.cast(positions_BL[:, 0])), memory.state()
        q_BHLE, k_BKLE, v_BKLE = (memory.cast(x).transpose(1, 2) for x in (q_BLHE, k_BLKE, v_BLKE))
        heads_BHLE = memory.attend(q_BHLE, k_BKLE, v_BKLE, memory.cast(positions_BL[:, 0]))
        return cast(heads_BHLE.transpose(1, 2), q_BLHE.dtype), memory.state()


def fold_memory(
    position_B: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
    state: State,
    tables: FoldedTables | None = None,
) -> State:
    """Return the state after the fold that precedes the token at ``position_B``, a multiple of ``layout.fold``. Before
    the first token it changes nothing that is read.

    Args:
        tables: as in :func:`folded_memory_step`.
    """
    with without_autocast(state[-1].device):
        memory = _Memory(layout, rotary, ranges, state, state[-1].dtype, tables)
        memory.fold(memory.cast(position_B))
        return memory.state()


class _Memory:
    """The state of a layer, by name."""

    def __init__(
        self,
        layout: FoldedLayout,
        rotary: Rotary,
        ranges: FoldedRanges,
        state: State,
        dtype: torch.dtype,
        tables: FoldedTables | None,
    ) -> None:
        self.layout, self.rotary, self.dtype = layout, rotary, dtype
        self.ranges = FoldedRanges(*(self.cast(t) for t in ranges))
        self.tables = folded_tables(layout, dtype, state[-1].device) if tables is None else tables
        self.width, self.group = state[-1].shape[-1], state[-1].shape[-2]
        names = list(layout.state(self.width, self.group))
        self.held = dict(zip(names, state, strict=True))
        self.places_F = torch.tensor([float(i) for i in range(layout.fold)], dtype=dtype, device=state[-1].device)

    def cast(self, t: Tensor) -> Tensor:
        return cast(t, self.dtype)

    def state(self) -> State:
        return tuple(self.held.values())

    def attend(self, q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, position_B: Tensor) -> Tensor:
        """Put the tokens behind the last ones; return their outputs [B, H, L, E]."""
        fold, length = self.layout.fold, q_BHLE.shape[2]
        last_BKGE = q_BHLE[:, :, -1].unflatten(1, (-1, self.group))
        self.held["query"] = cast(last_BKGE, self.held["query"].dtype)
        waiting_B1 = self._waiting(position_B)[:, None]
        late_BLF = self.places_F > waiting_B1[:, :, None] + self.places_F[:length, None]
        late_B1LF = torch.where(late_BLF, MASKED, 0.0).to(self.dtype)[:, None]
        found = []
        for j in range(self.layout.heads):
            keys_B1CE = self._append(f"keys_{j}", k_BKLE[:, j : j + 1], waiting_B1, self.ranges.key_scale_KE[j])
            values_B1CE = self._append(f"values_{j}", v_BKLE[:, j : j + 1], waiting_B1, self.ranges.value_scale_KE[j])
            bias_BG1C = self.cast(self.held[f"bias_{j}"])
            bias_BGLF = late_B1LF.expand(-1, self.group, -1, -1)
            bias_BGLC = torch.cat([bias_BG1C[..., :-fold].expand(-1, -1, length, -1), bias_BGLF], -1)
            q_BGLE = q_BHLE[:, j * self.group : (j + 1) * self.group]
            scores_BGLC = self.rotary.scores(q_BGLE @ keys_B1CE.mT) + bias_BGLC
            found.append(scores_BGLC.softmax(-1) @ values_B1CE)
        return torch.cat(found, 1)

    def attend_in_runtime(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, position_B: Tensor) -> Tensor:
        """As :meth:`attend`, with an operator for each head; outputs are [B, L, H, E]."""
        heads, length = self.layout.heads, q_BLHE.shape[1]
        self.held["query"] = q_BLHE[:, -1].unflatten(1, (heads, self.group))
        total_K = (
            torch.cat([head.before_1 for head in self.tables]) + length + self._waiting(position_B).to(torch.int32)
        )
        totals, lasts = total_K.split(1), (total_K - 1).split(1)
        queries = q_BLHE.flatten(2).split(self.group * self.width, -1)
        keys, values = (x_BLKE.flatten(2).split(self.width, -1) for x_BLKE in (k_BLKE, v_BLKE))
        found = []
        for j in range(heads):
            scales = (self.ranges.key_scale_KE[j], self.ranges.value_scale_KE[j])
            out_BLX, self.held[f"keys_{j}"], self.held[f"values_{j}"] = grouped_query_attention(
                queries[j],
                keys[j],
                values[j],
                self.held[f"keys_{j}"],
                self.held[f"values_{j}"],
                self.held[f"bias_{j}"],
                lasts[j],
                totals[j],
                self.rotary,
                scales if self.layout.precision == "int8" else None,
            )
            found.append(out_BLX)
        return torch.cat(found, -1).unflatten(2, (-1, self.width))

    def _waiting(self, position_B: Tensor) -> Tensor:
        """How many tokens wait already: folds begin at multiples of F."""
        return position_B - (position_B / self.layout.fold).floor() * self.layout.fold

    def _append(self, name: str, new_B1LE: Tensor, waiting_B1: Tensor, scale: Tensor) -> Tensor:
        """Write new tokens among those that wait, and return all entries [B, 1, C, E] as attention reads them."""
        pool_B1CE, fold = self.held[name], self.layout.fold
        waiting_B1FE = self._stored(new_B1LE, scale, pool_B1CE.dtype)
        if new_B1LE.shape[2] != fold:
            here_B1F1 = (self.places_F == waiting_B1)[:, None, :, None]
            waiting_B1FE = torch.where(here_B1F1, waiting_B1FE, pool_B1CE[:, :, -fold:])
        self.held[name] = torch.cat([pool_B1CE[:, :, :-fold], waiting_B1FE], 2)
        return self._read(self.held[name], scale)

    def _stored(self, x: Tensor, scale: Tensor, dtype: torch.dtype, *, mean: bool = False) -> Tensor:
        return cast(numbers(x, scale, mean=mean) if self.layout.precision == "int8" else x, dtype)

    def _read(self, pool: Tensor, scale: Tensor) -> Tensor:
        wide = self.cast(pool)
        return wide * scale if self.layout.precision == "int8" else wide

    def fold(self, position_B: Tensor) -> None:
        """Fold every head before the token at ``position_B``."""
        query_BKGE = self.cast(self.held["query"])
        for j, head in enumerate(self.tables):
            self._fold(j, head, query_BKGE[:, j], position_B[:, None])

    def _fold(self, j: int, head: HeadTables, query_BGE: Tensor, position_B1: Tensor) -> None:
        fold, held = self.layout.fold, self.held
        scales = {"keys": self.ranges.key_scale_KE[j], "values": self.ranges.value_scale_KE[j]}
        keys_BCE, values_BCE = (self._read(held[f"{name}_{j}"][:, 0], scale) for name, scale in scales.items())
        importance_BC = self._received(j, query_BGE, keys_BCE)
        # The slots, and the oldest tokens behind them.
        first_M = torch.cat([head.places_N, head.slots_1 + self.places_F.long()])
        count_BN, position_BN, spread_BN = self.cast(held[f"facts_{j}"]).unbind(1)
        place_BF = position_B1 - head.window_1 + (self.places_F - fold)
        there_BF = (place_BF >= 0).to(self.dtype)
        place_BF = place_BF.clamp_min(0.0)
        count_BM, position_BM = torch.cat([count_BN, there_BF], -1), torch.cat([position_BN, place_BF], -1)
        candidates = Entries(
            self.rotary.turn(keys_BCE.index_select(1, first_M), position_BM, back=True),
            values_BCE.index_select(1, first_M),
            count_BM,
            position_BM,
            torch.cat([spread_BN, torch.zeros_like(place_BF)], -1),
            importance_BC.index_select(1, first_M) * (count_BM > 0).to(self.dtype),
        )
        made = folded(candidates, fold, self.layout.sinks, head.places_N)
        turned_BNE = self.rotary.turn(made.key_RME, made.position_RM)
        for (name, scale), x_BNE in zip(scales.items(), (turned_BNE, made.value_RME), strict=True):
            pool_B1CE = held[f"{name}_{j}"]
            slots_B1NE = self._stored(x_BNE, scale, pool_B1CE.dtype, mean=True)[:, None]
            # What waits is overwritten before it is read; the newest tokens stand in for it.
            parts = [slots_B1NE, pool_B1CE.index_select(2, head.newest_W), pool_B1CE[:, :, -fold:]]
            held[f"{name}_{j}"] = torch.cat(parts, 2)
        square_1G = self.ranges.query_square_KG[j][None]
        facts = (made.count_RM, made.spread_RM, square_1G)
        slots_BGN = slot_bias(*facts, self.rotary.scale, self.width, self.layout.cap)
        window_BW = torch.where(position_B1 + head.ages_W >= 0, 0.0, MASKED).to(self.dtype)
        bias = torch.cat([window_BW, torch.zeros_like(place_BF)], -1)[:, None].expand(-1, self.group, -1)
        held[f"bias_{j}"] = cast(torch.cat([slots_BGN, bias], -1)[:, :, None], held[f"bias_{j}"].dtype)
        left_BW = importance_BC.index_select(1, head.newest_W)
        importance_BC = torch.cat([made.importance_RM, left_BW, torch.zeros_like(place_BF)], -1)
        held[f"importance_{j}"] = cast(importance_BC, held[f"importance_{j}"].dtype)
        facts_B3N = torch.stack([made.count_RM, made.position_RM, made.spread_RM], 1)
        held[f"facts_{j}"] = cast(facts_B3N, held[f"facts_{j}"].dtype)

    def _received(self, j: int, query_BGE: Tensor, keys_BCE: Tensor) -> Tensor:
        """Importance [B, C] with what the last token paid to slots and to the window; what waits has none."""
        fold, decay = self.layout.fold, self.layout.decay**self.layout.fold
        bias_BGC = self.cast(self.held[f"bias_{j}"][:, :, 0])
        attention_BGC = (self.rotary.scores(query_BGE @ keys_BCE.mT) + bias_BGC).softmax(-1)
        importance_BC = (self.cast(self.held[f"importance_{j}"]) + attention_BGC.sum(1)) * decay
        return torch.cat([importance_BC[:, :-fold], torch.zeros_like(importance_BC[:, -fold:])], -1)
