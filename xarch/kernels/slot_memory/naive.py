"""The memory entry by entry: the definition, and the reference for the other backends.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, G heads that share a key/value head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.slot_memory.layout import MemoryLayout, quantised


@dataclass
class _Entry:
    """A token; ``key`` is rotated in sinks and window, and not in slots."""

    key: Tensor
    value: Tensor
    position: Tensor
    importance: Tensor
    scales: tuple[Tensor, Tensor] | None = None


@register("slot_memory", "naive", priority=0)
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
    kv_heads = k_BLKE.shape[2]
    group = heads // kv_heads
    dtype = island_dtype(q_BLHE, *state)
    before = dict(zip(layout.state(kv_heads, width), state, strict=True))
    after = {name: t.clone() for name, t in before.items()}
    rows = []
    for b in range(batch):
        for j in range(kv_heads):
            begin = int(positions_BL[b, 0]) if length else 0
            memory = _Memory(layout, rotary, {n: t[b, j].to(dtype) for n, t in before.items()}, begin)
            for t in range(length):
                q_GE = q_BLHE[b, t, j * group : (j + 1) * group].to(dtype)
                given = (k_BLKE[b, t, j].to(dtype), v_BLKE[b, t, j].to(dtype))
                rows.append(memory.token(q_GE, *given, int(positions_BL[b, t])))
            memory.store({n: t[b, j] for n, t in after.items()})
    if not rows:
        return torch.zeros_like(q_BLHE), tuple(after.values())
    y_BKLGE = torch.stack(rows).view(batch, kv_heads, length, group, width)
    return y_BKLGE.transpose(1, 2).reshape(q_BLHE.shape).to(q_BLHE.dtype), tuple(after.values())


class _Memory:
    """Sinks, window and slots of one head of one sequence."""

    def __init__(self, layout: MemoryLayout, rotary: Rotary, state: dict[str, Tensor], position: int) -> None:
        self.layout, self.rotary = layout, rotary
        self.zero = state["exact_keys"].new_zeros(())
        self.sinks = [self._exact(state, i, i) for i in range(min(position, layout.sinks))]
        held = max(0, min(layout.window, position - layout.sinks))
        end = layout.sinks + layout.window
        self.window = [self._exact(state, end - i, position - i) for i in range(held, 0, -1)]
        used = max(0, min(layout.slots, position - layout.sinks - layout.window))
        slots = [state[f"slot_{name}"] for name in ("keys", "values", "positions", "importance")] if used else []
        self.slots = [_Entry(key, value, p, s) for key, value, p, s in zip(*(t[:used] for t in slots), strict=True)]

    def _exact(self, state: dict[str, Tensor], place: int, position: int) -> _Entry:
        key, value = state["exact_keys"][place], state["exact_values"][place]
        scales = None
        if self.layout.exact == "int8":
            scales = (state["key_scales"][place], state["value_scales"][place])
            key, value = key * scales[0], value * scales[1]
        importance = state["exact_importance"][place] if self.layout.slots else self.zero
        return _Entry(key, value, self.zero + position, importance, scales)

    def token(self, q_GE: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        """Return the heads' outputs [G, E] at a token."""
        if position == 0:
            self.sinks, self.window, self.slots = [], [], []
        new = self._arrived(key, value, position)
        if position < self.layout.sinks:
            self.sinks.append(new)
        else:
            if len(self.window) == self.layout.window:
                self._leave(self.window.pop(0))
            self.window.append(new)
        entries = [*self.sinks, *self.window, *self.slots]
        exact = len(self.sinks) + len(self.window)
        keys = [e.key if i < exact else self.rotary.turn(e.key, e.position) for i, e in enumerate(entries)]
        weights_GN = self.rotary.scores(q_GE @ torch.stack(keys).mT).softmax(-1)
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
        return _Entry(key, value, self.zero + position, self.zero, scales)

    def _leave(self, token: _Entry) -> None:
        """Put a token that leaves the window into a slot, or drop it."""
        token = replace(token, key=self.rotary.turn(token.key, token.position, back=True))
        if self.layout.stored == "float16":
            token.key, token.value = token.key.half().to(token.key.dtype), token.value.half().to(token.value.dtype)
        if len(self.slots) < self.layout.slots:
            self.slots.append(token)
        elif self.slots:
            least = min(range(len(self.slots)), key=lambda i: float(self.slots[i].importance))
            if self.slots[least].importance <= token.importance:
                self.slots[least] = token

    def store(self, state: dict[str, Tensor]) -> None:
        """Write what is held into the tensors of one head of one sequence."""
        end = self.layout.sinks + self.layout.window
        for place, e in [*enumerate(self.sinks), *enumerate(self.window, end - len(self.window))]:
            key, value = e.key, e.value
            if e.scales is not None:
                key, value = (key / e.scales[0]).round(), (value / e.scales[1]).round()
                state["key_scales"][place], state["value_scales"][place] = e.scales
            state["exact_keys"][place], state["exact_values"][place] = key, value
            if self.layout.slots:
                state["exact_importance"][place] = e.importance
        for i, e in enumerate(self.slots):
            state["slot_keys"][i], state["slot_values"][i] = e.key, e.value
            state["slot_positions"][i], state["slot_importance"][i] = e.position, e.importance
