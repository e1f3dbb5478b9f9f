"""Tap: a named place in a model whose value can be matched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tap:
    """Declaration of a place in a model or of a batch tensor.

    Attributes:
        name: dotted path, unique in the model, e.g. ``blocks.3.mixer_out``. Numbers in it count layers.
        kind: descriptive label for display: "hidden", "logits", "feature", "matrix", or any word a family uses.
        layout: form of the value: one letter per dimension for a tensor ("BLD", "BCHW", "BK"), the first being samples;
            or the name of a structured form ("attention-factors"). By convention B samples, L and T positions, D width,
            C channels, H and W image height and width, K classes, V vocabulary.
        shape: dimension letter -> size, for the dimensions fixed by the architecture (``{"D": 576}``).
        info: further facts an objective or connector may need (prefix tokens, grid size). A structured form gives its
            storage size under ``elements``: a layout with sizes in ``shape`` or ``info``, or a count of numbers per
            sample; its model packs it, see ``TapModel.packed``. A value that its model computes by further passes (a
            gradient of the answer) tells under ``passes`` how many forward passes they cost besides the one that gives
            all others, for the plan's time.
    """

    name: str
    kind: str
    layout: str
    shape: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> str:
        """Last part of the name: the tap's name within its site."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def dense(self) -> bool:
        """Whether the value is one tensor whose layout names its dimensions."""
        return self.layout.isalpha() and self.layout.isupper()

    def elements(self, sizes: Mapping[str, int]) -> int | None:
        """Return how many numbers one sample's value holds (for a structured form, those to store); None if unknown.

        Args:
            sizes: sizes of free dimensions, e.g. ``{"L": 512}``.
        """
        layout = self.layout if self.dense else self.info.get("elements", "")
        if not isinstance(layout, str):
            return int(layout)
        if not layout:
            return None
        total = 1
        for letter in layout[1:]:
            size = self.shape.get(letter, self.info.get(letter, sizes.get(letter)))
            if size is None:
                return None
            total *= size
        return total
