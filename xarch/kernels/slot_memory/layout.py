"""Sizes, precision and constants of a slot memory, and the tensors of its state.

Legend: B batch, K key/value heads, E head width, P exact entries of all heads, M slots of all heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, get_args

import torch

from xarch.errors import UsageError
from xarch.kernels.graph_forms import SIZES_ONLY

ExactPrecision = Literal["float32", "float16", "int8"]
SlotPrecision = Literal["float32", "float16"]
Write = Literal["merge", "evict"]

FACTS = ("count", "position", "variance", "importance")
"""Rows of the state ``slot_facts``."""


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """How many tokens each key/value head remembers, and how.

    Attributes:
        sinks: first tokens of a document that every head keeps.
        windows: most recent tokens that each head keeps, itself included; at least 1.
        slots: places of each head for what leaves its window; 0: it is dropped.
        exact: precision of sinks and window; int8 has one float32 scale per key and per value.
        stored: precision of keys and values of slots. Their count, position, variance and importance are float32.
        write: what a full memory does with a token that leaves the window. "merge": of the slots and the token, the
            least important is merged into the one with the nearest key. "evict": the least important is dropped.
        decay: importance is multiplied by it with every token, before the attention received is added.
        age: tokens after which attention received by an entry of the window begins to count.
        cap: largest bias by which the variance of a slot's keys may raise its score.
    """

    sinks: int
    windows: tuple[int, ...] = field(metadata=SIZES_ONLY)
    slots: tuple[int, ...] = field(metadata=SIZES_ONLY)
    exact: ExactPrecision = "float32"
    stored: SlotPrecision = "float32"
    write: Write = "merge"
    decay: float = 0.995
    age: int = 8
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.windows or len(self.windows) != len(self.slots):
            raise UsageError(f"slot_memory: {len(self.windows)} windows for {len(self.slots)} numbers of slots")
        if self.sinks < 0 or min(self.windows) < 1 or min(self.slots) < 0:
            raise UsageError(
                f"slot_memory: want sinks >= 0, windows >= 1 and slots >= 0, got {self.sinks}, "
                f"{list(self.windows)} and {list(self.slots)}"
            )
        for name, value, known in (
            ("exact", self.exact, get_args(ExactPrecision)),
            ("stored", self.stored, get_args(SlotPrecision)),
            ("write", self.write, get_args(Write)),
        ):
            if value not in known:
                raise UsageError(f"slot_memory: {name} is {value!r}, want one of {', '.join(known)}")

    @property
    def heads(self) -> int:
        """Number of key/value heads."""
        return len(self.windows)

    @property
    def exact_total(self) -> int:
        """P: sinks and window entries of all heads."""
        return self.heads * self.sinks + sum(self.windows)

    @property
    def slot_total(self) -> int:
        """M: slots of all heads."""
        return sum(self.slots)

    @property
    def window_starts(self) -> tuple[int, ...]:
        """First window entry of each head among the exact entries; sinks of all heads come before."""
        return tuple(accumulate(self.windows[:-1], initial=self.heads * self.sinks))

    @property
    def slot_starts(self) -> tuple[int, ...]:
        """First slot of each head."""
        return tuple(accumulate(self.slots[:-1], initial=0))

    @property
    def exact_facts(self) -> tuple[str, ...]:
        """Rows of the state ``exact_facts``."""
        rows = ("importance",) if self.slot_total else ()
        return (*rows, "key_scale", "value_scale") if self.exact == "int8" else rows

    def state(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape without the batch, dtype) of the state's tensors for heads of ``width``.

        ``exact_keys`` and ``exact_values`` [P, E]: the sinks of every head, then the window of every head, oldest
        token first, with rotated keys. ``exact_facts`` [R, P]: rows :attr:`exact_facts`. ``slot_keys`` and
        ``slot_values`` [M, E]: keys before rotation. ``slot_facts`` [4, M]: rows :data:`FACTS`. Tensors without
        entries are left out. An initial state is all zeros.
        """
        exact, stored = getattr(torch, self.exact), getattr(torch, self.stored)
        rows = len(self.exact_facts)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "exact_keys": ((self.exact_total, width), exact),
            "exact_values": ((self.exact_total, width), exact),
        }
        if rows:
            shapes["exact_facts"] = ((rows, self.exact_total), torch.float32)
        if self.slot_total:
            shapes["slot_keys"] = ((self.slot_total, width), stored)
            shapes["slot_values"] = ((self.slot_total, width), stored)
            shapes["slot_facts"] = ((len(FACTS), self.slot_total), torch.float32)
        return shapes

    def bytes(self, width: int) -> int:
        """Bytes of the state of one sequence."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.state(width).values())


def entry_bytes(width: int, precision: ExactPrecision, *, importance: bool) -> int:
    """Bytes of one window entry of one head."""
    own = 2 * width * getattr(torch, precision).itemsize + (8 if precision == "int8" else 0)
    return own + (4 if importance else 0)


def slot_bytes(width: int, precision: SlotPrecision) -> int:
    """Bytes of one slot of one head."""
    return 2 * width * getattr(torch, precision).itemsize + 4 * len(FACTS)
