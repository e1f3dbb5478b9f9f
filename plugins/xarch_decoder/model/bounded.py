"""The teacher's attention with a bound on what it may see: the base of memories of constant size.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any

from torch import Tensor

from xarch import PlanError
from xarch.kernels import Rotary
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.mixer import SequenceInfo


class BoundedAttention(Attention):
    """Attention with the teacher's weights whose subclasses say what :meth:`remember` sees.

    Raises:
        PlanError: the layer's memory is constant already.
    """

    def __init__(self, facts: DecoderFacts, layer: int) -> None:
        super().__init__(facts, layer)
        if self.window is not None:
            raise PlanError(
                f"layer {layer} has a sliding window of {self.window} tokens: its memory is constant already",
                "leave this layer out of those that are replaced",
            )
        self.rotary = Rotary(facts.inverse_frequencies, facts.rotary_gain, facts.scale, facts.softcap)

    @abstractmethod
    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        """Return the heads' outputs [B, L, H, E] over whole sequences, from rotated queries and keys."""

    def operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values."""
        return *self._queries_keys(x_BLD, self._rotation(sequence)), self._values(x_BLD)

    def exact(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        """Return the heads' outputs [B, L, H, E] of the attention that the memory stands for."""
        return self._attend(q_BLHE, k_BLKE, v_BLKE, self._mask(sequence))

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        return self.o(self.remember(*self.operands(x_BLD, sequence), sequence).flatten(2))

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        q_BLHE, k_BLKE, v_BLKE = self.operands(x_BLD, sequence)
        values: dict[str, Any] = {"values": v_BLKE}
        if "heads" in wanted or "mixer_out" in wanted:
            values["heads"] = self.remember(q_BLHE, k_BLKE, v_BLKE, sequence)
            values["mixer_out"] = self.o(values["heads"].flatten(2))
        return {name: value for name, value in values.items() if name in wanted}

    def inner_layouts(self) -> dict[str, str]:
        return {"values": "BLKE", "heads": "BLHE", "mixer_out": "BLD"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"values": {"K": self.kv_heads, "E": self.head_dim}, "heads": {"H": self.heads, "E": self.head_dim}}

    def advance_fixed(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.advance(x_BLD, positions_BL, state)
