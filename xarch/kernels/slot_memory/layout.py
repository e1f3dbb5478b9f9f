"""Sizes, precision and constants of a slot memory, and the tensors of its state.

Legend: K key/value heads, E head width, P = sinks + window exact entries, N slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from xarch.errors import UsageError

ExactPrecision = Literal["float32", "float16", "int8"]
SlotPrecision = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """How many tokens every key/value head remembers, and how.

    Attributes:
        sinks: first tokens of a document, which are always kept.
        window: most recent tokens that are kept, the newest included; at least 1.
        slots: places for tokens that left the window, for those with the most attention; 0: what leaves is dropped.
        exact: precision of sinks and window; int8 has one float32 scale per key and per value.
        stored: precision of keys and values of slots.
        decay: importance is multiplied by it with every token, before the attention received is added.
        age: tokens after which attention received by an entry of the window begins to count.
    """

    sinks: int
    window: int
    slots: int = 0
    exact: ExactPrecision = "float32"
    stored: SlotPrecision = "float32"
    decay: float = 0.995
    age: int = 8

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1 or self.slots < 0:
            raise UsageError(
                "slot_memory: want sinks >= 0, window >= 1 and slots >= 0, "
                f"got {self.sinks}, {self.window} and {self.slots}"
            )
        for name, value, known in (
            ("exact", self.exact, get_args(ExactPrecision)),
            ("stored", self.stored, get_args(SlotPrecision)),
        ):
            if value not in known:
                raise UsageError(f"slot_memory: {name} is {value!r}, want one of {', '.join(known)}")

    def state(self, heads: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape without the batch, dtype) of the state's tensors.

        ``exact_keys`` and ``exact_values`` [K, P, E]: sinks, then the window, oldest token first, with rotated keys;
        with int8 also ``key_scales`` and ``value_scales`` [K, P]. With slots also ``exact_importance`` [K, P], that of
        sinks is 0; ``slot_keys`` and ``slot_values`` [K, N, E], keys before rotation; ``slot_positions`` and
        ``slot_importance`` [K, N]. An initial state is all zeros.

        Args:
            heads: K.
            width: E.
        """
        exact, stored, single = getattr(torch, self.exact), getattr(torch, self.stored), torch.float32
        entries, slots = (heads, self.sinks + self.window), (heads, self.slots)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "exact_keys": ((*entries, width), exact),
            "exact_values": ((*entries, width), exact),
        }
        if self.exact == "int8":
            shapes |= {"key_scales": (entries, single), "value_scales": (entries, single)}
        if self.slots:
            shapes |= {
                "exact_importance": (entries, single),
                "slot_keys": ((*slots, width), stored),
                "slot_values": ((*slots, width), stored),
                "slot_positions": (slots, single),
                "slot_importance": (slots, single),
            }
        return shapes

    def bytes(self, heads: int, width: int) -> int:
        """Bytes of the state of one sequence."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.state(heads, width).values())


def entry_bytes(width: int, precision: ExactPrecision, *, importance: bool) -> int:
    """Bytes of one token in one head."""
    own = 2 * width * getattr(torch, precision).itemsize + (8 if precision == "int8" else 0)
    return own + (4 if importance else 0)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [..., 1] and whole numbers from -127 to 127 [..., E] whose product is near x [..., E]."""
    scale = (x.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-30)
    return scale, (x / scale).round()
