"""The one part of a decoder block that a conversion replaces: the sequence mixer.

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class StateSpec:
    """One tensor of a mixer's recurrent state.

    Attributes:
        name: e.g. "ssm_state"; in exported graphs layer i's tensor is ``ssm_state.i`` and leaves as
            ``present_ssm_state.i``.
        shape: per-sample shape, without the batch dimension; -1 marks the dimension that grows with the tokens seen.
        fill: value of the initial state.
    """

    name: str
    shape: tuple[int, ...]
    fill: float = 0.0


@dataclass
class Sequence:
    """What a mixer may know about the tokens besides their hidden states.

    ``positions_BL`` restart at zero with every document; ``segment_ids_BL`` is None when each row is one document.
    """

    positions_BL: Tensor
    segment_ids_BL: Tensor | None = None


class Mixer(nn.Module, ABC):
    """Mixes along the sequence, causally. Input is the block's normed hidden state, output goes to the residual."""

    kind: ClassVar[str]
    """Name used in student configs, e.g. "attention" or "dm2"."""

    @abstractmethod
    def forward(self, x_BLD: Tensor, sequence: Sequence) -> Tensor:
        """Whole sequences from the initial state (training, evaluation)."""

    @abstractmethod
    def advance(self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """L more tokens of one document from ``state``: (output [B, L, D], new state). Traceable by torch.export.

        Feeding a sequence in any pieces gives the same output as :meth:`forward`.
        """

    @abstractmethod
    def state_spec(self) -> tuple[StateSpec, ...]:
        """Names and shapes of the state tensors, in the order :meth:`advance` takes them."""

    def inner(self, x_BLD: Tensor, sequence: Sequence, wanted: Collection[str]) -> dict[str, Any]:
        """Values of inner taps (``matrix``, ``heads``) when a stage matches them."""
        raise ValueError(f"mixer {self.kind!r} has no inner taps, wanted {sorted(wanted)}")

    def inner_layouts(self) -> dict[str, str]:
        """Inner tap -> layout, for the taps :meth:`inner` can give."""
        return {}
