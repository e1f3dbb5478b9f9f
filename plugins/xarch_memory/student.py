"""A decoder student whose attention is a memory of constant size in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from xarch import PlanError
from xarch.kernels import FoldedLayout
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.model.folded import FoldedAttention
from xarch_decoder.student import DecoderStudent
from xarch_memory.options import Sizes


class MemoryStudent(DecoderStudent):
    """See :class:`DecoderStudent`.

    Args:
        sizes: how entries become windows and slots.
        entries: layer -> entries of each key/value head besides its sinks.
        budget: state bytes of all these layers together, for a stage that divides them anew.
        count: number of layers for a stage ``kl_probe`` to choose; all others keep attention.
    """

    def __init__(
        self,
        facts: DecoderFacts,
        sizes: Sizes,
        entries: Mapping[int, list[int]],
        budget: int,
        *,
        count: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        mixers: list[list[MixerFactory]] = [[Attention] for _ in range(facts.layers)]
        for layer, own in entries.items():
            memory = partial(FoldedAttention, layout=sizes.layout(own))
            mixers[layer] = [memory] if count is None else [memory, Attention]
        super().__init__(facts, mixers, count=count, device=device)
        self.sizes, self.budget = sizes, budget

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return the groups of :class:`DecoderStudent`, and ``outputs``: the output projections of memories."""
        groups = super().param_groups()
        return {**groups, "outputs": [name for name in groups["mixers"] if name.rsplit(".", 2)[-2] == "o"]}

    def memory(self, layer: int) -> FoldedAttention:
        """Return the memory of a layer.

        Raises:
            ValueError: the layer has none.
        """
        found = self.decoder.block(layer).mixer(FoldedAttention.kind)
        assert isinstance(found, FoldedAttention)
        return found

    def layouts(self) -> dict[int, FoldedLayout]:
        """Return the layout of every replaced layer."""
        return {layer: self.memory(layer).layout for layer in self.replaced}

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply ``{"layers": [...]}``, after which the budget is that of these layers, and ``{"entries": {layer:
        [entries of each head]}}``, see :func:`decided_entries`."""
        if "layers" in decisions:
            super().decide({"layers": decisions["layers"]})
            self.budget = self.sizes.options.budget(self.facts, len(self.replaced))
        entries = decided_entries(decisions, self.replaced, self.facts.kv_heads)
        for layer, sizes in entries.items():
            self.memory(layer).layout = self.sizes.layout(sizes)


def decided_entries(decisions: Mapping[str, Any], layers: tuple[int, ...], heads: int) -> dict[int, list[int]]:
    """Return layer -> entries of each key/value head from decisions; empty without any.

    Raises:
        PlanError: the decision names other layers or another number of heads.
        ValueError: the decision is unknown.
    """
    unknown = sorted(set(decisions) - {"entries", "layers"})
    if unknown:
        raise ValueError(f"a memory student accepts decisions about layers and entries only, got {unknown}")
    found = {int(layer): [int(n) for n in sizes] for layer, sizes in decisions.get("entries", {}).items()}
    if found and (set(found) != set(layers) or any(len(sizes) != heads for sizes in found.values())):
        raise PlanError(
            f"decision `entries` names layers {sorted(found)}, expected {list(layers)} with {heads} heads each"
        )
    return found
