"""Options of the memory target: the budget of state bytes and its form.

Legend: E head width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch import PlanError
from xarch.kernels import FoldedLayout, entry_bytes, entry_cost
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.layer_choice import LayerOptions

DEFAULT_ENTRIES = 109
"""Tokens of a float32 cache whose bytes are the default budget of a layer."""


class MemoryOptions(LayerOptions):
    """Options of the target ``memory``."""

    bytes_a_layer: int | None = Field(
        None,
        ge=1,
        le=1 << 40,
        description="mean state bytes of a replaced layer; default: those of 109 tokens of a float32 cache",
    )
    bytes_in_all: int | None = Field(None, ge=1, le=1 << 44, description="state bytes of all replaced layers together")
    precision: Literal["float32", "int8"] = Field(
        "int8", description="of keys and values; int8 has a scale per channel"
    )
    sinks: int = Field(4, ge=0, le=1 << 16, description="first tokens that are always kept")
    fold: int = Field(
        32,
        ge=1,
        le=1 << 12,
        description="tokens after which the oldest leave the windows together; prefill pieces are multiples",
    )
    window_share: float = Field(0.45, gt=0, lt=1, description="part of a head's entries that are recent tokens")

    @model_validator(mode="after")
    def _one_budget(self) -> MemoryOptions:
        if self.bytes_a_layer is not None and self.bytes_in_all is not None:
            raise ValueError("set only one of bytes_a_layer and bytes_in_all")
        return self

    def budget(self, facts: DecoderFacts, layers: int) -> int:
        """Return the state bytes of all replaced layers together."""
        if self.bytes_in_all is not None:
            return self.bytes_in_all
        default = DEFAULT_ENTRIES * facts.kv_heads * entry_bytes(facts.head_dim, "float32", importance=False)
        return layers * (self.bytes_a_layer or default)


class Sizes:
    """From the entries of a head to its window, slots and bytes.

    Args:
        options: of the target.
        facts: of the decoder.
    """

    def __init__(self, options: MemoryOptions, facts: DecoderFacts) -> None:
        self.options, self.facts = options, facts
        width, group = facts.head_dim, facts.heads // facts.kv_heads
        self.token = entry_cost(width, group, options.precision)
        self.slot = entry_cost(width, group, options.precision, slot=True)
        self.query = 4 * width * group
        self.least = options.fold + options.sinks + 1
        """Fewest entries of a head."""

    def split(self, entries: int) -> tuple[int, int]:
        """Return (window, slots) of a head with so many entries besides those that wait for a fold."""
        window = min(
            max(self.options.fold, round(self.options.window_share * entries)), entries - self.options.sinks - 1
        )
        return window, entries - window

    def bytes(self, entries: int) -> int:
        """Return the state bytes of such a head."""
        window, slots = self.split(entries)
        return (window + self.options.fold) * self.token + slots * self.slot + self.query

    def most(self, budget: int) -> int:
        """Return the entries of a head that fit into ``budget`` bytes.

        Raises:
            PlanError: not even the fewest do.
        """
        if self.bytes(self.least) > budget:
            raise PlanError(
                f"student.options: {budget} bytes for a key/value head, but first tokens, a window of one fold and one "
                f"slot need {self.bytes(self.least)}",
                "raise bytes_a_layer (or bytes_in_all), or lower fold or sinks",
            )
        low, high = self.least, 2 + self.least + budget // self.token
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes(middle) <= budget else (low, middle)
        return low

    def layout(self, entries: list[int]) -> FoldedLayout:
        """Return the layout of a layer from the entries of its heads."""
        windows, slots = zip(*(self.split(n) for n in entries), strict=True)
        options = self.options
        return FoldedLayout(slots, windows, options.fold, options.sinks, options.precision)
