"""A tap: a named place in a model whose value can be matched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tap:
    """Declaration of a place in a model, or of a tensor of a batch.

    Attributes:
        name: dotted path, unique in the model, e.g. ``blocks.3.mixer_out``. Numbers in it count layers.
        kind: what it is, for people and lists: "hidden", "logits", "feature", "matrix", or any word of a family.
        layout: what the value looks like: one letter a dimension for a tensor ("BLD", "BCHW", "BK"), the first of
            which counts samples; or the name of a structured form ("attention-factors"). By convention B samples,
            L, T positions, D width, C channels, H, W picture, K classes, V vocabulary.
        shape: dimension letter -> size, for the dimensions fixed by the architecture (``{"D": 576}``).
        info: further facts an objective or connector may need (prefix tokens, grid size). A structured form says
            under ``elements`` what of it is worth storing: a layout with sizes in ``shape``, or numbers a sample.
    """

    name: str
    kind: str
    layout: str
    shape: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> str:
        """The last part of the name: what the tap is called inside its site."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def dense(self) -> bool:
        """Whether the value is one tensor whose layout names its dimensions."""
        return self.layout.isalpha() and self.layout.isupper()

    def elements(self, sizes: Mapping[str, int]) -> int | None:
        """Numbers that one sample's value holds (that are worth storing of a structured form); None where a size or a
        form is unknown.

        Args:
            sizes: size of free dimensions, e.g. ``{"L": 512}``.
        """
        layout = self.layout if self.dense else self.info.get("elements", "")
        if not isinstance(layout, str):
            return int(layout)
        if not layout:
            return None
        total = 1
        for letter in layout[1:]:
            size = self.shape.get(letter, sizes.get(letter))
            if size is None:
                return None
            total *= size
        return total
