"""Whole sequences from their first token, in plain PyTorch: attention between two folds is one product.

Sequences and heads are rows, all with as many slots as the largest head; places that a smaller head lacks are blocked.
What is in a window is read from the sequence itself.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width, R = B K rows, N slots of
the largest head, F tokens of a fold, T tokens that any row still sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import MASKED, Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.folded_memory.folding import Facts, fold, rows_of
from xarch.kernels.folded_memory.layout import HALFWAY, FoldedLayout, FoldedRanges
from xarch.kernels.precision import island_dtype


@register("folded_memory", "torch", priority=10)
def folded_memory_plain(
    q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, layout: FoldedLayout, rotary: Rotary, ranges: FoldedRanges
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.folded_memory`, positions from 0 in every row."""
    batch, heads, dtype = q_BLHE.shape[0], layout.heads, island_dtype(q_BLHE, k_BLKE, v_BLKE)
    q_RGLE = q_BLHE.to(dtype).unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
    k_RLE, v_RLE = (x.to(dtype).transpose(1, 2).flatten(0, 1) for x in (k_BLKE, v_BLKE))
    own = per_row(FoldedRanges(*(t.to(dtype) for t in ranges)), batch)
    rows = _Rows(layout, rotary, own, batch, k_RLE, v_RLE)
    found = []
    for begin in range(0, q_RGLE.shape[2], layout.fold):
        found.append(rows.attend(q_RGLE[:, :, begin : begin + layout.fold], begin))
    if not found:
        return torch.zeros_like(q_BLHE)
    heads_BKGLE = torch.cat(found, 2).unflatten(0, (batch, heads))
    return heads_BKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3).to(q_BLHE.dtype)


def stored(x: Tensor, scale: Tensor | None, *, mean: bool = False) -> Tensor:
    """What memory keeps of x, which is a mean of tokens or a token; gradients pass through the rounding."""
    if scale is None:
        return x
    kept = numbers(x, scale, mean=mean) * scale
    return x + (kept - x).detach() if x.requires_grad else kept


def numbers(x: Tensor, scale: Tensor, *, mean: bool = False) -> Tensor:
    """Whole numbers that fit into 8 bits, and times ``scale`` are nearest to x."""
    steps = x / scale
    return (steps + HALFWAY if mean else steps).round().clamp(-128.0, 127.0)


def slot_bias(count_RN: Tensor, spread_RN: Tensor, square_RG: Tensor, scale: float, width: int, cap: float) -> Tensor:
    """What is added to scores of slots [R, G, N]: ln n, and for the spread of what was merged, whose scores have the
    variance scale² |q|² u / E, half of that."""
    gain_RG1 = (square_RG * (scale**2 / (2 * width)))[..., None]
    bias_RGN = count_RN.clamp_min(1.0).log()[:, None] + (gain_RG1 * spread_RN[:, None]).clamp_max(cap)
    return torch.where((count_RN > 0)[:, None], bias_RGN, MASKED)


def _shared(a_RGFX: Tensor, b_RXY: Tensor) -> Tensor:
    """Products of all heads with what they share, which is not repeated for each."""
    return (a_RGFX.flatten(1, 2) @ b_RXY).unflatten(1, a_RGFX.shape[1:3])


def per_row(ranges: FoldedRanges, batch: int) -> FoldedRanges:
    """Return the ranges of heads for the rows of so many sequences."""
    if batch == 1:
        return ranges
    return FoldedRanges(*(t.repeat(batch, *[1] * (t.dim() - 1)) for t in ranges))


class _Rows:
    """Slots of all rows, and the importance of tokens."""

    def __init__(
        self,
        layout: FoldedLayout,
        rotary: Rotary,
        ranges: FoldedRanges,
        batch: int,
        k_RLE: Tensor,
        v_RLE: Tensor,
    ) -> None:
        self.layout, self.rotary, self.ranges = layout, rotary, ranges
        scaled = layout.precision == "int8"
        self.key_scale = ranges.key_scale_KE[:, None] if scaled else None
        self.value_scale = ranges.value_scale_KE[:, None] if scaled else None
        self.k_RLE, self.v_RLE = stored(k_RLE, self.key_scale), stored(v_RLE, self.value_scale)
        rows, length, width = k_RLE.shape
        device = k_RLE.device
        self.window_R = torch.tensor(layout.windows, device=device).repeat(batch)
        slots_R = torch.tensor(layout.slots, device=device).repeat(batch)
        most = max(layout.slots)
        self.places_N = torch.arange(most, device=device)
        blocked_RN = self.places_N < (most - slots_R)[:, None]
        self.blocked_RM = torch.cat([blocked_RN, blocked_RN.new_zeros(rows, layout.fold)], 1)
        empty_RN = k_RLE.new_zeros(rows, most)
        self.slots = Facts(k_RLE.new_zeros(rows, 3, most), empty_RN)
        self.key_RNE = self.turned_RNE = self.value_RNE = k_RLE.new_zeros(rows, most, width)
        self.importance_RL = k_RLE.new_zeros(rows, length)

    def attend(self, q_RGFE: Tensor, begin: int) -> Tensor:
        """Fold if tokens came before, then return the outputs [R, G, F, E] of the tokens from ``begin``."""
        if begin:
            self._fold(begin)
        end = begin + q_RGFE.shape[2]
        first = max(0, begin - int(max(self.layout.windows)))
        k_RTE, v_RTE = self.k_RLE[:, first:end], self.v_RLE[:, first:end]
        place_T = torch.arange(first, end, device=q_RGFE.device)
        near_RT = place_T >= begin - self.window_R[:, None]
        seen_FT = place_T <= torch.arange(begin, end, device=q_RGFE.device)[:, None]
        scores_RGFT = self.rotary.scores(_shared(q_RGFE, k_RTE.mT))
        scores_RGFT = torch.where((near_RT[:, None] & seen_FT)[:, None], scores_RGFT, MASKED)
        if not begin:
            return _shared(scores_RGFT.softmax(-1), v_RTE)
        scores_RGFN = self.rotary.scores(_shared(q_RGFE, self.turned_RNE.mT)) + self._bias()[:, :, None]
        weights = torch.cat([scores_RGFN, scores_RGFT], -1).softmax(-1)
        most = scores_RGFN.shape[-1]
        self._receive(weights[:, :, -1].detach().sum(1), first, begin)
        return _shared(weights[..., :most], self.value_RNE) + _shared(weights[..., most:], v_RTE)

    def _bias(self) -> Tensor:
        width = self.k_RLE.shape[-1]
        square_RG, cap = self.ranges.query_square_KG, self.layout.cap
        count_RN, _, spread_RN = self.slots.held_R3M.unbind(1)
        return slot_bias(count_RN, spread_RN, square_RG, self.rotary.scale, width, cap)

    def _receive(self, attention_RN: Tensor, first: int, begin: int) -> None:
        """Add what the last token before a fold paid to slots and to the window, and let all decay."""
        most = self.slots.importance_RM.shape[1]
        kept = self.layout.decay**self.layout.fold
        importance_RN = (self.slots.importance_RM + attention_RN[:, :most]) * kept
        self.slots = self.slots._replace(importance_RM=importance_RN)
        received_RT = attention_RN[:, most : most + begin - first]
        self.importance_RL = self.importance_RL * kept
        self.importance_RL[:, first:begin] += received_RT * kept

    def _fold(self, begin: int) -> None:
        leaving = self.layout.fold
        ages_F = torch.arange(leaving, device=self.k_RLE.device)
        place_RF = begin - leaving - self.window_R[:, None] + ages_F
        there_RF = place_RF >= 0
        at_RF = place_RF.clamp_min(0)
        at_RFE = at_RF[..., None].expand(-1, -1, self.k_RLE.shape[-1])
        position_RF = at_RF.to(self.k_RLE.dtype)
        held_R3F = torch.stack([there_RF.to(self.k_RLE.dtype), position_RF, torch.zeros_like(position_RF)], 1)
        importance_RF = self.importance_RL.gather(1, at_RF) * there_RF
        turned_RFE = self.k_RLE.gather(1, at_RFE)
        key_RME = torch.cat([self.key_RNE, self.rotary.turn(turned_RFE, position_RF, back=True)], 1)
        turned_RME = torch.cat([self.turned_RNE, turned_RFE], 1)
        value_RME = torch.cat([self.value_RNE, self.v_RLE.gather(1, at_RFE)], 1)
        made = fold(
            Facts(
                torch.cat([self.slots.held_R3M, held_R3F], -1), torch.cat([self.slots.importance_RM, importance_RF], 1)
            ),
            lambda places_RX, position_RX: rows_of(key_RME, places_RX),
            lambda places_RX: rows_of(value_RME, places_RX),
            leaving,
            self.layout.sinks,
            self.places_N,
            self.blocked_RM,
        )
        self.slots = made.facts
        turned_RFE = stored(self.rotary.turn(made.key_RFE, made.position_RF), self.key_scale, mean=True)
        key_RFE = self.rotary.turn(turned_RFE, made.position_RF, back=True)
        value_RFE = stored(made.value_RFE, self.value_scale, mean=True)
        self.key_RNE, self.turned_RNE, self.value_RNE = (
            rows_of(torch.cat(pair, 1), made.source_RN)
            for pair in ((key_RFE, key_RME), (turned_RFE, turned_RME), (value_RFE, value_RME))
        )
