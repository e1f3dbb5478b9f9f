"""Models that write tokens after something that was read: what families of encoder and decoder have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xarch import Tap, TapModel
from xarch_decoder.factored import FactoredLogits


class Predicting(TapModel):
    """A model whose facts know its taps, and whose module knows its logits: ``logits(final)`` and ``head_weight``."""

    module: Any
    facts: Any

    def taps(self) -> Mapping[str, Tap]:
        found: Mapping[str, Tap] = self.facts.taps()
        return found

    def work(self, sample: Mapping[str, Any]) -> float:
        return float(self.facts.work(sample))

    def packed(self, name: str, value: Any) -> Any:
        return value.x_BLD if isinstance(value, FactoredLogits) else value

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self.module.logits(stored) if name == "logits" else stored

    def constants(self) -> Mapping[str, Tensor]:
        """Return ``head.weight`` [V, D], the output projection."""
        return {"head.weight": self.module.head_weight}
