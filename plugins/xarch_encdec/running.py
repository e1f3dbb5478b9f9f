"""Models that write tokens after something that was read: what families of encoder and decoder have in common.

Legend: B batch, T decoder tokens, D width, V vocabulary.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from xarch import Batch, Sink, Tap, TapModel
from xarch_decoder.factored import FactoredLogits


class Predicting(TapModel):
    """A model whose facts know its taps, and whose module knows its logits: ``logits(final)`` and ``head_weight``.

    Attributes:
        written: names of the taps that decoder tokens are needed for.
    """

    module: Any
    facts: Any
    written: ClassVar[re.Pattern[str]]

    @abstractmethod
    def read(self, batch: Batch, wanted: Collection[str], sink: Sink) -> Any:
        """Return what the decoder reads of a batch, and push the wanted taps on the way."""

    @abstractmethod
    def write(self, batch: Batch, source: Any, wanted: Collection[str], sink: Sink) -> Tensor:
        """Return the final hidden states [B, T, D] of decoder tokens, and push the wanted taps on the way.

        Args:
            source: from :meth:`read`.
        """

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push the wanted taps. The decoder runs only if one of them needs it, so a batch of sources alone is enough
        for the others.

        Raises:
            ValueError: a wanted tap does not exist.
        """
        unknown = sorted(set(wanted) - set(self.taps()))
        if unknown:
            raise ValueError(f"a model of the family {self.family} has no taps {', '.join(unknown)}")
        source = self.read(batch, wanted, sink)
        if not any(self.written.fullmatch(name) for name in wanted):
            return
        final_BTD = self.write(batch, source, wanted, sink)
        if "logits" in wanted:
            sink("logits", self.module.logits(final_BTD))

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


def until(ids: list[int], ends: Collection[int]) -> list[int]:
    """Return the tokens before the first that ends an answer."""
    return ids[: next((t for t, token in enumerate(ids) if token in ends), len(ids))]
