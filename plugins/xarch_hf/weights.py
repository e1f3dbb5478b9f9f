"""A transformers model's weights under the decoder family's canonical names, as views.

Legend of the fused layout: H heads, P projections in one weight, E head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from xarch import PlanError
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.weights import weight_shapes
from xarch_hf.architectures import Architecture, Fused
from xarch_hf.wording import few


class CanonicalWeights(Mapping[str, Tensor]):
    """Mapping of canonical names to tensors. Whole weights are views; parts of fused weights are gathered on access.

    Args:
        module: the causal language model, on any device (the plan uses the meta device).
        architecture: the names of weights in the model.
        facts: facts that imply names and shapes.

    Raises:
        PlanError: a weight is missing, unused, or has another shape; lists all of them.
    """

    def __init__(self, module: nn.Module, architecture: Architecture, facts: DecoderFacts) -> None:
        self._own = dict(module.named_parameters())
        self._heads = facts.heads
        shapes = weight_shapes(facts)
        self._places = {name: _place(architecture, name) for name in shapes}
        self._prove(shapes, architecture.model_type)

    def __getitem__(self, name: str) -> Tensor:
        own, fused = self._places[name]
        whole = self._own[own].detach()
        if fused is None:
            return whole
        split_HPE = whole.unflatten(0, (self._heads, fused.parts, -1))
        return split_HPE[:, fused.part].flatten(0, 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _prove(self, shapes: Mapping[str, tuple[int, ...]], model_type: str) -> None:
        missing = [f"{own} (for {name})" for name, (own, _) in self._places.items() if own not in self._own]
        if missing:
            raise PlanError(f"{model_type}: the model has no weight {few(missing)}")
        wrong = [
            f"{name} is {tuple(self[name].shape)}, but the configuration implies {shape}"
            for name, shape in shapes.items()
            if tuple(self[name].shape) != shape
        ]
        if wrong:
            raise PlanError(f"{model_type}: {few(wrong)}")
        uses = Counter((own, fused.part if fused else None) for own, fused in self._places.values())
        parts = {own: fused.parts if fused else 1 for own, fused in self._places.values()}
        left = sorted(set(self._own) - set(parts))
        if left:
            raise PlanError(f"{model_type}: weights not covered by a canonical name: {few(left)}")
        used = Counter(own for own, _ in uses)
        odd = sorted(own for own, count in parts.items() if used[own] != count)
        odd += sorted(own for (own, _), times in uses.items() if times != 1)
        if odd:
            raise PlanError(f"{model_type}: weights not used exactly once: {few(odd)}")


def _place(architecture: Architecture, name: str) -> tuple[str, Fused | None]:
    """Return the model's own name of a canonical weight, and its part if several share one tensor."""
    stem, _, suffix = name.rpartition(".")
    layer, pattern = "", stem
    if stem.startswith("blocks."):
        _, layer, rest = stem.split(".", 2)
        pattern = f"blocks.{{i}}.{rest}"
    own = architecture.stems.get(pattern)
    if own is None:
        raise PlanError(f"{architecture.model_type}: the table has no entry for {name!r}")
    fused = own if isinstance(own, Fused) else None
    stem = own.name if isinstance(own, Fused) else own
    return f"{stem.replace('{i}', layer)}.{suffix}", fused
