"""Sizes, precision and constants of a folded memory, and the tensors of its state.

Heads of a layer are rows of the same tensors, so that a device works on all of them at once; those that are smaller
than the largest leave the rest of their rows unused.

Legend: K key/value heads, G heads that share one, E head width, N slots of a head, W its window, F tokens of a fold,
C = N + W + F entries of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.bounded_attention import MASKED
from xarch.kernels.graph_forms import SIZES_ONLY

FoldedPrecision = Literal["float32", "int8"]

FACTS = ("count", "position", "spread")
"""Rows of the state ``facts``."""


@dataclass(frozen=True, slots=True)
class FoldedLayout:
    """How many tokens each key/value head remembers, and how.

    Attributes:
        slots: places of each head for tokens that left its window, alone or merged; more than ``sinks``.
        windows: most recent tokens of each head that a fold keeps; at least ``fold``.
        fold: tokens after which those that are too old leave the windows together.
        sinks: first tokens of a document; they get slots of their own and are never merged.
        precision: of keys and values; int8 has a constant scale per channel.
        decay: importance is multiplied by it with every token.
        cap: largest bias by which the spread of a slot's keys may raise its score.
    """

    slots: tuple[int, ...] = field(metadata=SIZES_ONLY)
    windows: tuple[int, ...] = field(metadata=SIZES_ONLY)
    fold: int = 32
    sinks: int = 4
    precision: FoldedPrecision = "int8"
    decay: float = 0.995
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.slots or len(self.slots) != len(self.windows):
            raise UsageError(f"folded_memory: {len(self.slots)} numbers of slots for {len(self.windows)} windows")
        if self.fold < 1 or self.sinks < 0 or min(self.slots) <= self.sinks or min(self.windows) < self.fold:
            raise UsageError(
                "folded_memory: want fold >= 1, sinks >= 0, slots > sinks and windows >= fold, got "
                f"fold {self.fold}, sinks {self.sinks}, slots {list(self.slots)} and windows {list(self.windows)}"
            )
        if self.precision not in get_args(FoldedPrecision):
            known = ", ".join(get_args(FoldedPrecision))
            raise UsageError(f"folded_memory: precision is {self.precision!r}, want one of {known}")

    @property
    def heads(self) -> int:
        """K: number of key/value heads."""
        return len(self.slots)

    @property
    def entries(self) -> tuple[int, ...]:
        """C of each head."""
        return tuple(n + w + self.fold for n, w in zip(self.slots, self.windows, strict=True))

    def state(self, width: int, group: int) -> dict[str, MemoryTensor]:
        """Name -> one tensor of the state, of which every sequence has a row for each key/value head.

        Shapes of a row, with C and N of the largest head: ``keys`` and ``values`` [1, C, E], slots first, then tokens,
        the oldest first, with rotated keys; ``bias`` [G, 1, C], what is added to scores; ``importance`` [C]; ``facts``
        [3, N], rows :data:`FACTS` of slots, what a smaller head lacks before them; ``query`` [G, E], that of the last
        token, rotated.

        Args:
            width: E.
            group: G.
        """
        stored, entries, slots = getattr(torch, self.precision), max(self.entries), max(self.slots)
        lacking, fewer = self.heads * entries - sum(self.entries), self.heads * slots - sum(self.slots)
        single = torch.float32
        return {
            "keys": MemoryTensor((1, entries, width), stored, 0.0, lacking * width),
            "values": MemoryTensor((1, entries, width), stored, 0.0, lacking * width),
            "bias": MemoryTensor((group, 1, entries), single, MASKED, lacking * group),
            "importance": MemoryTensor((entries,), single, 0.0, lacking),
            "facts": MemoryTensor((len(FACTS), slots), single, 0.0, fewer * len(FACTS)),
            "query": MemoryTensor((group, width), single, 0.0, 0),
        }

    def bytes(self, width: int, group: int) -> int:
        """Bytes of the state of one sequence, without padding."""
        found = self.state(width, group).values()
        return sum((self.heads * math.prod(t.shape) - t.padding) * t.dtype.itemsize for t in found)


class MemoryTensor(NamedTuple):
    """One tensor of a state.

    Attributes:
        shape: of a row.
        fill: initial value.
        padding: elements of all rows of a sequence that hold nothing, since its heads have different sizes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float
    padding: int


HALFWAY = 1e-3
"""Added to a mean before it is rounded: that of two tokens lies halfway between two numbers every other time, and
rounding errors must not decide."""


class FoldedRanges(NamedTuple):
    """What a folded memory has to know beforehand about its keys, values and queries."""

    key_scale_KE: Tensor
    """Rotated key = scale times a whole number from -128 to 127; read with precision int8 only."""
    value_scale_KE: Tensor
    query_square_KG: Tensor
    """Mean of |q|² of rotated queries."""


def entry_cost(width: int, group: int, precision: FoldedPrecision, *, slot: bool = False) -> int:
    """Bytes of an entry of one key/value head, a token's or a slot."""
    pair = 2 * width * int(getattr(torch, precision).itemsize)
    return pair + 4 * (group + 1) + (4 * len(FACTS) if slot else 0)
