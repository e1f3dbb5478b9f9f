"""Options of the memory target: the budget of state bytes and its form.

Legend: E head width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch import PlanError
from xarch.kernels import MemoryLayout, entry_bytes, slot_bytes
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
    window: Literal["float32", "float16", "int8"] = Field("int8", description="precision of sinks and window")
    slots: Literal["float32", "float16"] = Field("float16", description="precision of merged keys and values")
    sinks: int = Field(4, ge=0, le=1 << 16, description="first tokens that are always kept")
    window_share: float = Field(0.5, gt=0, le=1, description="part of a head's entries that are recent tokens")

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
        self.slotted = options.window_share < 1
        self.entry = entry_bytes(facts.head_dim, options.window, importance=self.slotted)
        self.slot = slot_bytes(facts.head_dim, options.slots)

    def split(self, entries: int) -> tuple[int, int]:
        """Return (window, slots) of a head with so many entries besides its sinks."""
        window = min(entries, max(1, round(self.options.window_share * entries)))
        return window, entries - window

    def bytes(self, entries: int) -> int:
        """Return the state bytes of such a head, sinks included."""
        window, slots = self.split(entries)
        return (self.options.sinks + window) * self.entry + slots * self.slot

    def most(self, budget: int) -> int:
        """Return the entries of a head that fit into ``budget`` bytes, at least one.

        Raises:
            PlanError: not one does.
        """
        if self.bytes(1) > budget:
            raise PlanError(
                f"student.options: {budget} bytes for a key/value head, but sinks and one token need {self.bytes(1)}",
                "raise bytes_a_layer (or bytes_in_all), or lower sinks",
            )
        low, high = 1, 2 + budget // min(self.entry, self.slot)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes(middle) <= budget else (low, middle)
        return low

    def layout(self, entries: list[int]) -> MemoryLayout:
        """Return the layout of a layer from the entries of its heads."""
        windows, slots = zip(*(self.split(n) for n in entries), strict=True)
        return MemoryLayout(self.options.sinks, windows, slots, exact=self.options.window, stored=self.options.slots)
