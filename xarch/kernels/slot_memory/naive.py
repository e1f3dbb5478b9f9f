"""The memory entry by entry: the definition, and the reference for the other backends.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, G heads that share a key/value head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.step import quantised


@dataclass
class _Entry:
    """A token, or several merged ones; ``key`` is rotated in sinks and window, and not in slots."""

    key: Tensor
    value: Tensor
    position: Tensor
    importance: Tensor
    count: Tensor
    variance: Tensor
    scales: tuple[Tensor, Tensor] | None = None


@register("slot_memory", "naive", priority=0, lacks=["tables"])
def slot_memory_naive(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    *,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`; always with the state."""
    batch, length, heads, width = q_BLHE.shape
    group = heads // layout.heads
    dtype = island_dtype(q_BLHE, *state)
    before = dict(zip(layout.state(width), state, strict=True))
    after = {name: t.clone() for name, t in before.items()}
    rows = []
    for b in range(batch):
        for j in range(layout.heads):
            begin = int(positions_BL[b, 0]) if length else 0
            memory = _Memory(layout, rotary, j, {n: t[b].to(dtype) for n, t in before.items()}, begin)
            for t in range(length):
                q_GE = q_BLHE[b, t, j * group : (j + 1) * group].to(dtype)
                given = (k_BLKE[b, t, j].to(dtype), v_BLKE[b, t, j].to(dtype))
                rows.append(memory.token(q_GE, *given, int(positions_BL[b, t])))
            memory.store({n: t[b] for n, t in after.items()})
    if not rows:
        return torch.zeros_like(q_BLHE), tuple(after.values())
    y_BKLGE = torch.stack(rows).view(batch, layout.heads, length, group, width)
    return y_BKLGE.transpose(1, 2).reshape(q_BLHE.shape).to(q_BLHE.dtype), tuple(after.values())


class _Memory:
    """Sinks, window and slots of one head of one sequence."""

    def __init__(
        self, layout: MemoryLayout, rotary: Rotary, head: int, state: dict[str, Tensor], position: int
    ) -> None:
        self.layout, self.rotary, self.head = layout, rotary, head
        self.window_size, self.slot_count = layout.windows[head], layout.slots[head]
        self.zero = state["exact_keys"].new_zeros(())
        self.sinks = [self._exact(state, head * layout.sinks + i, i) for i in range(min(position, layout.sinks))]
        held = max(0, min(self.window_size, position - layout.sinks))
        end = layout.window_starts[head] + self.window_size
        self.window = [self._exact(state, end - held + i, position - held + i) for i in range(held)]
        used = max(0, min(self.slot_count, position - layout.sinks - self.window_size))
        start = layout.slot_starts[head]
        self.slots = [self._slot(state, start + i) for i in range(used)]

    def _exact(self, state: dict[str, Tensor], place: int, position: int) -> _Entry:
        key, value = state["exact_keys"][place], state["exact_values"][place]
        facts = {name: state["exact_facts"][i, place] for i, name in enumerate(self.layout.exact_facts)}
        scales = None
        if self.layout.exact == "int8":
            scales = (facts["key_scale"], facts["value_scale"])
            key, value = key * scales[0], value * scales[1]
        importance = facts.get("importance", self.zero)
        return _Entry(key, value, self.zero + position, importance, self.zero + 1, self.zero, scales)

    def _slot(self, state: dict[str, Tensor], place: int) -> _Entry:
        count, position, variance, importance = state["slot_facts"][:, place]
        return _Entry(state["slot_keys"][place], state["slot_values"][place], position, importance, count, variance)

    def token(self, q_GE: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        """Return the heads' outputs [G, E] at a token."""
        if position == 0:
            self.sinks, self.window, self.slots = [], [], []
        new = self._arrived(key, value, position)
        if position < self.layout.sinks:
            self.sinks.append(new)
        else:
            if len(self.window) == self.window_size:
                self._write(self.window.pop(0))
            self.window.append(new)
        entries = [*self.sinks, *self.window, *self.slots]
        exact = len(self.sinks) + len(self.window)
        keys = [e.key if i < exact else self.rotary.turn(e.key, e.position) for i, e in enumerate(entries)]
        scores_GN = self.rotary.scores(q_GE @ torch.stack(keys).mT)
        bias = [self._bias(q_GE, e) for e in entries]
        weights_GN = (scores_GN + torch.stack(bias, 1)).softmax(-1)
        received_N = weights_GN.sum(0)
        for i, e in enumerate(entries):
            in_window = len(self.sinks) <= i < exact
            if i >= exact or (in_window and position - int(e.position) >= self.layout.age):
                e.importance = self.layout.decay * e.importance + received_N[i]
        return weights_GN @ torch.stack([e.value for e in entries])

    def _arrived(self, key: Tensor, value: Tensor, position: int) -> _Entry:
        scales = None
        if self.layout.exact == "int8":
            (key_scale, key), (value_scale, value) = quantised(key), quantised(value)
            scales = (key_scale[0], value_scale[0])
            key, value = key * key_scale, value * value_scale
        elif self.layout.exact == "float16":
            key, value = key.half().to(key.dtype), value.half().to(value.dtype)
        return _Entry(key, value, self.zero + position, self.zero, self.zero + 1, self.zero, scales)

    def _bias(self, q_GE: Tensor, e: _Entry) -> Tensor:
        spread_G = q_GE.square().sum(-1) * e.variance * self.rotary.scale**2 / (2 * q_GE.shape[-1])
        return e.count.log() + spread_G.clamp_max(self.layout.cap)

    def _write(self, leaving: _Entry) -> None:
        """Put a token that leaves the window into the slots."""
        if self.slot_count == 0:
            return
        leaving = _Entry(
            self.rotary.turn(leaving.key, leaving.position, back=True),
            leaving.value,
            leaving.position,
            leaving.importance,
            leaving.count,
            leaving.variance,
        )
        if len(self.slots) < self.slot_count:
            self.slots.append(self._rounded(leaving))
            return
        candidates = [*self.slots, leaving]
        b = int(torch.stack([e.importance.detach() for e in candidates]).argmin())
        last = self.slot_count
        if self.layout.write == "evict":
            if b < last:
                self.slots[b] = self._rounded(leaving)
            return
        apart = torch.stack([(e.key - candidates[b].key).square().sum() for e in candidates])
        a = min((i for i in range(last + 1) if i != b), key=lambda i: float(apart[i]))
        merged = self._rounded(self._merged(candidates[a], candidates[b], apart[a]))
        if a == last:
            self.slots[b] = merged
        else:
            self.slots[a] = merged
            if b < last:
                self.slots[b] = self._rounded(leaving)

    def _merged(self, a: _Entry, b: _Entry, apart: Tensor) -> _Entry:
        f = b.count / (a.count + b.count)
        variance = (1 - f) * a.variance + f * b.variance + f * (1 - f) * apart
        key, value, position = (x + f * (y - x) for x, y in _pairs(a, b))
        return _Entry(key, value, position, a.importance + b.importance, a.count + b.count, variance)

    def _rounded(self, e: _Entry) -> _Entry:
        if self.layout.stored == "float16":
            e.key, e.value = e.key.half().to(e.key.dtype), e.value.half().to(e.value.dtype)
        return e

    def store(self, state: dict[str, Tensor]) -> None:
        """Write what is held into the tensors of one sequence."""
        layout = self.layout
        for i, e in enumerate(self.sinks):
            self._store_exact(state, self.head * layout.sinks + i, e)
        end = layout.window_starts[self.head] + self.window_size
        for i, e in enumerate(self.window):
            self._store_exact(state, end - len(self.window) + i, e)
        for i, e in enumerate(self.slots):
            place = layout.slot_starts[self.head] + i
            state["slot_keys"][place], state["slot_values"][place] = e.key, e.value
            state["slot_facts"][:, place] = torch.stack([e.count, e.position, e.variance, e.importance])

    def _store_exact(self, state: dict[str, Tensor], place: int, e: _Entry) -> None:
        key, value = e.key, e.value
        facts = {"importance": e.importance}
        if e.scales is not None:
            key, value = (key / e.scales[0]).round(), (value / e.scales[1]).round()
            facts |= {"key_scale": e.scales[0], "value_scale": e.scales[1]}
        state["exact_keys"][place], state["exact_values"][place] = key, value
        for i, name in enumerate(self.layout.exact_facts):
            state["exact_facts"][i, place] = facts[name]


def _pairs(a: _Entry, b: _Entry) -> tuple[tuple[Tensor, Tensor], ...]:
    return (a.key, b.key), (a.value, b.value), (a.position, b.position)
