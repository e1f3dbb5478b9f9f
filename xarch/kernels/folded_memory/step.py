"""The memory as a state: one token, all tokens between two folds, and the fold. What exporters record.

Every key/value head of a sequence is a row, with as many entries as the largest head; no operator depends on sizes,
which the tables hold.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width, R = B K rows, N slots of
the largest head, C its entries, F tokens of a fold, M = N + F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.bounded_attention import MASKED, Rotary, cast
from xarch.kernels.folded_memory.folding import Facts, fold
from xarch.kernels.folded_memory.layout import FoldedLayout, FoldedRanges
from xarch.kernels.folded_memory.plain import numbers, per_row, slot_bias
from xarch.kernels.folded_memory.tables import FoldedTables, folded_tables
from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import island_dtype, without_autocast
from xarch.kernels.runtime_attention import grouped_query_attention

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
        waiting_R = memory.waiting(positions_BL[:, 0])
        # Of several tokens its 8-bit form takes six times as long as products and a softmax.
        if graph_form("attention") == "runtime" and q_BLHE.shape[1] == 1:
            return memory.attend_in_runtime(q_BLHE, k_BLKE, v_BLKE, waiting_R), memory.state()
        q_RGLE = memory.cast(q_BLHE).unflatten(2, (layout.heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
        k_R1LE, v_R1LE = (memory.cast(x).transpose(1, 2).flatten(0, 1)[:, None] for x in (k_BLKE, v_BLKE))
        heads_RGLE = memory.attend(q_RGLE, k_R1LE, v_R1LE, waiting_R)
        heads_BKGLE = heads_RGLE.unflatten(0, (-1, layout.heads))
        return cast(heads_BKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3), q_BLHE.dtype), memory.state()


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
        position_B: of every sequence, or one [1] for all.
        tables: as in :func:`folded_memory_step`.
    """
    with without_autocast(state[-1].device):
        memory = _Memory(layout, rotary, ranges, state, state[-1].dtype, tables)
        memory.fold(memory.rows(memory.cast(position_B)))
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
        query_RGE = state[-1]
        self.batch, self.group, self.width = query_RGE.shape[0] // layout.heads, *query_RGE.shape[1:]
        device = query_RGE.device
        own = folded_tables(layout, dtype, device) if tables is None else tables
        self.tables = own if self.batch == 1 else _of_batch(own, self.batch)
        self.ranges = per_row(FoldedRanges(*(self.cast(t) for t in ranges)), self.batch)
        self.held = dict(zip(layout.state(self.width, self.group), state, strict=True))
        self.places_F = torch.tensor([float(i) for i in range(layout.fold)], dtype=dtype, device=device)
        self.scales = {"keys": self.ranges.key_scale_KE, "values": self.ranges.value_scale_KE}

    def cast(self, t: Tensor) -> Tensor:
        return cast(t, self.dtype)

    def state(self) -> State:
        return tuple(self.held.values())

    def rows(self, x_B: Tensor) -> Tensor:
        """Return a number of every sequence for all of its rows; one of all sequences fits them as it is."""
        return x_B if x_B.shape[0] == 1 else x_B.repeat_interleave(self.layout.heads)

    def waiting(self, position_B: Tensor) -> Tensor:
        """How many tokens of each row wait already: folds begin at multiples of F."""
        position_R = self.rows(self.cast(position_B))
        return position_R - (position_R / self.layout.fold).floor() * self.layout.fold

    def attend(self, q_RGLE: Tensor, k_R1LE: Tensor, v_R1LE: Tensor, waiting_R: Tensor) -> Tensor:
        """Put the tokens behind the last ones; return their outputs [R, G, L, E]."""
        length = q_RGLE.shape[2]
        self.held["query"] = cast(q_RGLE[:, :, -1], self.held["query"].dtype)
        keys_R1CE = self._append("keys", k_R1LE, waiting_R)
        values_R1CE = self._append("values", v_R1LE, waiting_R)
        last_RL1 = waiting_R[:, None, None] + self.places_F[:length, None]
        late_RLC = self.tables.ages_KC[:, None] > last_RL1
        bias_RGLC = torch.where(late_RLC[:, None], MASKED, self.cast(self.held["bias"]))
        scores_RGLC = self.rotary.scores(q_RGLE @ keys_R1CE.mT) + bias_RGLC
        return scores_RGLC.softmax(-1) @ values_R1CE

    def attend_in_runtime(self, q_11HE: Tensor, k_11KE: Tensor, v_11KE: Tensor, waiting_R: Tensor) -> Tensor:
        """As :meth:`attend` for one token of one sequence, as its layer has it, by an operator of onnxruntime."""
        q_R1X, k_R1E, v_R1E = (x.reshape(self.layout.heads, 1, -1) for x in (q_11HE, k_11KE, v_11KE))
        self.held["query"] = q_R1X[:, 0].unflatten(1, (self.group, -1))
        scaled = self.layout.precision == "int8"
        if scaled:
            # The operator has one scale of a channel for all rows: 1, for numbers that are scaled before.
            q_R1X = q_R1X * self.scales["keys"].repeat(1, self.group)[:, None]
            k_R1E, v_R1E = k_R1E / self.scales["keys"][:, None], v_R1E / self.scales["values"][:, None]
        last_R = self.tables.before_K + waiting_R.to(torch.int32)
        out_R1X, self.held["keys"], self.held["values"] = grouped_query_attention(
            q_R1X,
            k_R1E,
            v_R1E,
            self.held["keys"],
            self.held["values"],
            last_R,
            self.tables.entries_1,
            scale=self.rotary.scale,
            softcap=self.rotary.softcap,
            bias_RHLC=self.held["bias"],
            whole=scaled,
        )
        if scaled:
            out_R1X = out_R1X * self.scales["values"].repeat(1, self.group)[:, None]
        return out_R1X.reshape(q_11HE.shape)

    def _append(self, name: str, new_R1LE: Tensor, waiting_R: Tensor) -> Tensor:
        """Write new tokens among those that wait, and return all entries [R, 1, C, E] as attention reads them."""
        pool_R1CE, ages_RC = self.held[name], self.tables.ages_KC
        new_R1LE = self._stored(new_R1LE[:, 0], name)[:, None]
        if new_R1LE.shape[2] == 1:
            here_RC, new_R1CE = ages_RC == waiting_R[:, None], new_R1LE
        else:
            here_RC = (ages_RC >= 0) & (ages_RC < self.layout.fold)
            new_R1CE = _picked(new_R1LE[:, 0], self.tables.waiting_KC)[:, None]
        self.held[name] = torch.where(here_RC[:, None, :, None], new_R1CE, pool_R1CE)
        return self._read(name)

    def _stored(self, x_RLE: Tensor, name: str, *, mean: bool = False) -> Tensor:
        scale_R1E = self.scales[name][:, None]
        x_RLE = numbers(x_RLE, scale_R1E, mean=mean) if self.layout.precision == "int8" else x_RLE
        return cast(x_RLE, self.held[name].dtype)

    def _read(self, name: str) -> Tensor:
        return self._numbers_of(name, self.held[name][:, 0])[:, None]

    def _numbers_of(self, name: str, stored_RXE: Tensor) -> Tensor:
        wide_RXE = self.cast(stored_RXE)
        return wide_RXE * self.scales[name][:, None] if self.layout.precision == "int8" else wide_RXE

    def fold(self, position_R: Tensor) -> None:
        """Fold every row before the token at ``position_R``."""
        leaving, held, tables = self.layout.fold, self.held, self.tables
        importance_RC = self._received()
        # The slots, and the oldest tokens behind them.
        first_RM = torch.cat([tables.slots_KN, tables.oldest_KF], 1)
        place_RF = position_R[:, None] - tables.windows_K[:, None] + (self.places_F - leaving)
        there_RF = (place_RF >= 0).to(self.dtype)
        place_RF = place_RF.clamp_min(0.0)
        tokens_R3F = torch.stack([there_RF, place_RF, torch.zeros_like(place_RF)], 1)
        held_R3M = torch.cat([self.cast(held["facts"]), tokens_R3F], -1)
        importance_RM = _picked(importance_RC[..., None], first_RM)[..., 0]
        candidates = Facts(held_R3M, importance_RM * (held_R3M[:, 0] > 0).to(self.dtype))
        lacking_RM = torch.cat([tables.lacking_KN, torch.zeros_like(tables.oldest_KF, dtype=torch.bool)], 1)

        def read(name: str, places_RX: Tensor) -> Tensor:
            return self._numbers_of(name, _picked(held[name].flatten(0, 1), first_RM.gather(1, places_RX)))

        made = fold(
            candidates,
            lambda places_RX, position_RX: self.rotary.turn(read("keys", places_RX), position_RX, back=True),
            lambda places_RX: read("values", places_RX),
            leaving,
            self.layout.sinks,
            tables.places_N,
            lacking_RM,
            tables.firsts_K,
        )
        # Every entry is one of F merged ones, or of those that were there.
        rows = first_RM.shape[0]
        behind_R1 = torch.tensor([[leaving * (row + 1)] for row in range(rows)], device=first_RM.device)
        merged_RF = tables.kept_KC[:, :1] + torch.tensor([i - leaving for i in range(leaving)], device=first_RM.device)
        slots_RN = torch.cat([merged_RF, first_RM + behind_R1], 1).gather(1, made.source_RN)
        from_RC = _picked(torch.cat([slots_RN, tables.kept_KC], 1)[..., None], tables.made_KC)[..., 0]
        turned_RFE = self.rotary.turn(made.key_RFE, made.position_RF)
        for name, x_RFE in (("keys", turned_RFE), ("values", made.value_RFE)):
            merged_RFE = self._stored(x_RFE, name, mean=True)
            held[name] = _picked(torch.cat([merged_RFE, held[name][:, 0]], 1), from_RC)[:, None]
        held_R3N, importance_RN = made.facts
        count_RN, spread_RN = held_R3N[:, 0], held_R3N[:, 2]
        facts = (count_RN, spread_RN, self.ranges.query_square_KG)
        slots_RGN = slot_bias(*facts, self.rotary.scale, self.width, self.layout.cap)
        # By the places that tokens had before: the fold moves them.
        there_RC = position_R[:, None] + (tables.ages_KC - leaving) >= 0
        bias_RC1 = torch.where(there_RC, 0.0, MASKED).to(self.dtype)[..., None]
        slots_RNX = torch.cat([importance_RN[..., None], slots_RGN.mT], -1)
        tokens_RCX = torch.cat([importance_RC[..., None], bias_RC1.expand(-1, -1, self.group)], -1)
        after_RCX = _picked(torch.cat([slots_RNX, tokens_RCX], 1), tables.made_KC)
        waits_RC1 = torch.where(tables.ages_KC >= leaving, MASKED, 0.0).to(self.dtype)[..., None]
        bias_RCG = torch.where(tables.ages_KC[..., None] >= 0, waits_RC1, after_RCX[..., 1:])
        held["bias"] = cast(bias_RCG.mT[:, :, None], held["bias"].dtype)
        held["importance"] = cast(after_RCX[..., 0], held["importance"].dtype)
        held["facts"] = cast(held_R3N, held["facts"].dtype)

    def _received(self) -> Tensor:
        """Importance [R, C] with what the last token paid to slots and to the window; what waits has none."""
        query_RGE, bias_RGC = self.cast(self.held["query"]), self.cast(self.held["bias"][:, :, 0])
        if self.layout.precision == "int8":
            query_RGE = query_RGE * self.scales["keys"][:, None]
        keys_RCE = self.cast(self.held["keys"][:, 0])
        attention_RGC = (self.rotary.scores(query_RGE @ keys_RCE.mT) + bias_RGC).softmax(-1)
        importance_RC = (
            self.cast(self.held["importance"]) + attention_RGC.sum(1)
        ) * self.layout.decay**self.layout.fold
        return torch.where(self.tables.ages_KC < 0, importance_RC, 0.0)


def _picked(x_RCX: Tensor, places_RM: Tensor) -> Tensor:
    """Return rows [R, M, X] of all rows by their places. Whole rows are copied, where ``gather`` looks up numbers."""
    return x_RCX.flatten(0, 1).index_select(0, places_RM.flatten()).unflatten(0, (places_RM.shape[0], -1))


def _of_batch(tables: FoldedTables, batch: int) -> FoldedTables:
    """Return the tables for the rows of several sequences."""

    def repeated(name: str, table: Tensor) -> Tensor:
        if name == "places_N":
            return table
        whole = table.repeat(batch, *[1] * (table.dim() - 1))
        # Places count on from row to row, through all tensors of a layer.
        step = steps.get(name, 0)
        at = torch.arange(batch, device=table.device).repeat_interleave(len(table)) * step
        return whole + at.view(-1, *[1] * (table.dim() - 1)) if step else whole

    heads, entries = tables.ages_KC.shape
    slots, fold = tables.slots_KN.shape[1], tables.oldest_KF.shape[1]
    steps = {
        "waiting_KC": heads * fold,
        "slots_KN": heads * entries,
        "oldest_KF": heads * entries,
        "made_KC": heads * (slots + entries),
        "firsts_K": heads * (slots + fold),
        "kept_KC": heads * (fold + entries),
    }
    return FoldedTables(*(repeated(name, table) for name, table in tables._asdict().items()))
