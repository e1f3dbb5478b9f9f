"""A tap: a named place in a model whose value can be matched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = ("matrix", "hidden", "feature", "logits", "volume", "point", "ray", "scalar", "data")


@dataclass(frozen=True)
class Tap:
    """Declaration of a place in a model.

    Attributes:
        name: dotted path, unique in the model, e.g. ``blocks.3.mixer_out``.
        kind: one of :data:`KINDS`.
        layout: what the value looks like: a string of dimension letters for a tensor ("BLD", "BCHW"), or the
            name of a factored form ("attention-factors", "ssd-factors", "factored-logits").
        shape: dimension letter -> size, for the dimensions fixed by the architecture (``{"D": 576}``).
        info: further facts an objective may need (prefix tokens, grid size, whether values are clipped).
    """

    name: str
    kind: str
    layout: str
    shape: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"tap {self.name!r}: unknown kind {self.kind!r}, one of {', '.join(KINDS)}")

    @property
    def leaf(self) -> str:
        """The last part of the name: what the tap is called inside its site."""
        return self.name.rsplit(".", 1)[-1]
