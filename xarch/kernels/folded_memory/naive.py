"""The memory by its definition: token by token and head by head, with lists.

Legend: L tokens, G heads that share a key/value head, E head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.folded_memory.layout import HALFWAY, FoldedLayout, FoldedRanges
from xarch.kernels.precision import island_dtype


@dataclass
class _Entry:
    """A slot, or a token on its way to become one.

    Attributes:
        key: mean key before its rotation.
        stored: what is kept of the rotated key.
    """

    key: Tensor
    stored: Tensor
    value: Tensor
    position: Tensor
    count: int = 1
    spread: Tensor | float = 0.0
    importance: float = 0.0


@register("folded_memory", "naive", priority=0)
def folded_memory_naive(
    q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, layout: FoldedLayout, rotary: Rotary, ranges: FoldedRanges
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.folded_memory`, positions from 0 in every row."""
    dtype = island_dtype(q_BLHE, k_BLKE, v_BLKE)
    group = q_BLHE.shape[2] // layout.heads
    rows = []
    for q_LHE, k_LKE, v_LKE in zip(q_BLHE.to(dtype), k_BLKE.to(dtype), v_BLKE.to(dtype), strict=True):
        heads = []
        for j in range(layout.heads):
            own = FoldedRanges(*(t[j].to(dtype) for t in ranges))
            head = _Head(layout, rotary, own, layout.slots[j], layout.windows[j])
            q_LGE = q_LHE[:, j * group : (j + 1) * group]
            steps = [head.token(t, q_LGE[t], k_LKE[t, j], v_LKE[t, j]) for t in range(len(q_LGE))]
            heads.append(torch.stack(steps) if steps else torch.zeros_like(q_LGE))
        rows.append(torch.cat(heads, 1))
    return torch.stack(rows).to(q_BLHE.dtype) if rows else torch.zeros_like(q_BLHE)


class _Head:
    def __init__(self, layout: FoldedLayout, rotary: Rotary, ranges: FoldedRanges, slots: int, window: int) -> None:
        self.layout, self.rotary, self.ranges, self.places, self.window = layout, rotary, ranges, slots, window
        self.slots: list[_Entry] = []
        self.tokens: list[_Entry] = []
        self.last: list[float] = []

    def token(self, t: int, q_GE: Tensor, k_E: Tensor, v_E: Tensor) -> Tensor:
        """Return the outputs [G, E] of the token at position t."""
        if t and t % self.layout.fold == 0:
            self._fold()
        place = k_E.new_tensor(float(t))
        stored = self._stored(k_E, self.ranges.key_scale_KE)
        value = self._stored(v_E, self.ranges.value_scale_KE)
        key = self.rotary.turn(stored, place, back=True)
        self.tokens.append(_Entry(key, stored, value, place))
        entries = [*self.slots, *self.tokens]
        keys, values = torch.stack([e.stored for e in entries]), torch.stack([e.value for e in entries])
        biases = [self._biases(e) for e in self.slots] + [torch.zeros(len(q_GE), dtype=q_GE.dtype)] * len(self.tokens)
        weights = (self.rotary.scores(q_GE @ keys.mT) + torch.stack(biases, 1)).softmax(-1)
        self.last = weights.detach().sum(0).tolist()
        return weights @ values

    def _stored(self, x: Tensor, scale: Tensor, above: float = 0.0) -> Tensor:
        if self.layout.precision == "float32":
            return x
        return x + ((x / scale + above).round().clamp(-128.0, 127.0) * scale - x).detach()

    def _biases(self, entry: _Entry) -> Tensor:
        """What is added to scores of a slot [G]."""
        gain_G = self.ranges.query_square_KG * self.rotary.scale**2 / (2 * entry.key.shape[0])
        return math.log(entry.count) + (gain_G * entry.spread).clamp_max(self.layout.cap)

    def _fold(self) -> None:
        fold, kept = self.layout.fold, self.layout.decay**self.layout.fold
        entries = [*self.slots, *self.tokens]
        for i, (entry, attention) in enumerate(zip(entries, self.last, strict=True)):
            waits = i >= len(entries) - fold
            entry.importance = 0.0 if waits else (entry.importance + attention) * kept
        old = max(0, len(self.tokens) - self.window)
        candidates, self.tokens = [*self.slots, *self.tokens[:old]], self.tokens[old:]
        ranked = sorted(range(len(candidates)), key=lambda i: (-self._rank(candidates[i]), i))
        stay = [candidates[i] for i in ranked[: self.places]]
        go = [candidates[i] for i in ranked[self.places :]]
        open_ = [i for i, e in enumerate(stay) if not self._first(e)]
        parts: dict[int, list[_Entry]] = {}
        for b in go:
            apart = [float((stay[i].key - b.key).detach().square().sum()) for i in open_]
            if apart:
                parts.setdefault(open_[apart.index(min(apart))], []).append(b)
        self.slots = [self._merged([entry, *parts.get(i, [])]) for i, entry in enumerate(stay)]

    def _first(self, entry: _Entry) -> bool:
        return float(entry.position.detach()) < self.layout.sinks

    def _rank(self, entry: _Entry) -> float:
        return math.inf if self._first(entry) else entry.importance

    def _merged(self, parts: list[_Entry]) -> _Entry:
        count = sum(e.count for e in parts)

        def mean(values: list[Tensor]) -> Tensor:
            return torch.stack([e.count * v for e, v in zip(parts, values, strict=True)]).sum(0) / count

        key, position = mean([e.key for e in parts]), mean([e.position for e in parts])
        spread = mean([e.spread + e.key.square().sum() for e in parts]) - key.square().sum()
        stored = self._stored(self.rotary.turn(key, position), self.ranges.key_scale_KE, HALFWAY)
        value = self._stored(mean([e.value for e in parts]), self.ranges.value_scale_KE, HALFWAY)
        read = self.rotary.turn(stored, position, back=True)
        importance = sum(e.importance for e in parts)
        return _Entry(read, stored, value, position, count, spread.clamp_min(0.0), importance)
