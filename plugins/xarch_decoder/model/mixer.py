"""The one part of a decoder block that a conversion replaces: the sequence mixer.

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from xarch import PlanError

T = TypeVar("T")

ATTENTION = "attention"
"""Kind of the teacher's own mixer; every other kind is a replacement."""


@dataclass(frozen=True)
class StateSpec:
    """One tensor of a mixer's recurrent state.

    Attributes:
        name: e.g. "ssm_state"; in exported graphs layer i's tensor is the input ``ssm_state.i`` and the
            output ``present_ssm_state.i``.
        shape: of a row, without the batch dimension; -1 marks the dimension that grows with the tokens seen.
        fill: value of the initial state.
        dtype: torch dtype by name, e.g. "int8"; None: the weights' for a state that grows, else float32.
        sizes: axis of the batched tensor -> name of a size in which layers with :class:`Table` may differ.
        read, written: whether a single token reads it, and changes it. What it leaves alone only folds change.
        rows: of the tensor for each sequence: its first size is the number of sequences times this.
        padding: elements for each sequence that hold nothing.
        room: graphs for onnxruntime take a growing state with room for further tokens behind those that it holds.
    """

    name: str
    shape: tuple[int, ...]
    fill: float = 0.0
    dtype: str | None = None
    sizes: Mapping[int, str] = field(default_factory=dict)
    read: bool = True
    written: bool = True
    rows: int = 1
    padding: int = 0
    room: bool = False

    @property
    def axis(self) -> int | None:
        """Return the growing dimension of the batched tensor, or None if the state has a fixed size."""
        return self.shape.index(-1) + 1 if -1 in self.shape else None

    @property
    def bytes(self) -> int:
        """Return the bytes for one sequence, without padding.

        Raises:
            ValueError: the state grows.
        """
        if self.axis is not None:
            raise ValueError(f"state {self.name!r} grows with the tokens")
        return (self.rows * math.prod(self.shape) - self.padding) * getattr(torch, self.dtype or "float32").itemsize

    def sized(self, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape of the tensor for ``batch`` sequences, with ``length`` in place of -1."""
        return batch * self.rows, *(length if n == -1 else n for n in self.shape)


@dataclass(frozen=True)
class Table:
    """A constant tensor through which a graph learns the sizes of one layer.

    Attributes:
        name: in exported graphs layer i's tensor is the weight ``NAME.i``.
        value: the tensor.
        sizes: axis -> name of a size, as in :class:`StateSpec`.
    """

    name: str
    value: Tensor
    sizes: Mapping[int, str] = field(default_factory=dict)


@dataclass
class SequenceInfo:
    """What a mixer knows about the tokens apart from their hidden states.

    ``positions_BL`` restart at zero with every document; ``segment_ids_BL`` is None when each row is one document.
    """

    positions_BL: Tensor
    segment_ids_BL: Tensor | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return ``build()``, computed by the first layer that requests ``key`` and shared with all later ones."""
        if key not in self._shared:
            self._shared[key] = build()
        return self._shared[key]


class Mixer(nn.Module, ABC):
    """Mixes along the sequence, causally. Reads the block's normed hidden state; the output is added to the residual.

    A mixer holds no buffers that its state dict does not store: a student built on the meta device gets its storage
    first and its values later, and a derived buffer would never be computed again.
    """

    kind: ClassVar[str]
    """Name used in student configs, e.g. "attention" or "dm2"."""

    fold_every: int | None = None
    """Tokens after which the state needs :meth:`fold`, for a mixer that puts work off; None: never."""

    @abstractmethod
    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        """Process whole sequences from the initial state (training, evaluation)."""

    @abstractmethod
    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Process L more tokens of one document from ``state``; return (output [B, L, D], new state).

        Traceable by torch.export. Feeding a sequence in pieces of any size yields the same output as :meth:`forward`.
        With ``fold_every`` a piece is one token, or that many that begin at a multiple of it; at a multiple,
        :meth:`fold` has been called before.
        """

    @abstractmethod
    def state_spec(self) -> tuple[StateSpec, ...]:
        """Return names and shapes of the state tensors, in the order in which :meth:`advance` takes them."""

    def fold(
        self, positions_B: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Return the state that a token at ``positions_B``, a multiple of ``fold_every`` (0, too), reads.

        Args:
            positions_B: of every sequence, or one [1] for all.
            tables: as in :meth:`advance_sized`.
        """
        raise PlanError(
            f"mixer {self.kind!r} says that its state needs folds every {self.fold_every} tokens, and makes none",
            "implement `fold`, or leave out `fold_every`",
        )

    def advance_fixed(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Like :meth:`advance`, for runtimes without dynamic shapes.

        A growing state is a buffer of fixed length; its first ``positions_BL[:, 0]`` entries are in use. Mixers whose
        states do not grow inherit this method.

        Raises:
            PlanError: a state grows and the mixer has no fixed form.
        """
        growing = [spec.name for spec in self.state_spec() if spec.axis is not None]
        if growing:
            raise PlanError(
                f"mixer {self.kind!r}: state {', '.join(growing)} grows with the tokens and has no fixed-length form",
                "implement `advance_fixed`, or export for a profile with dynamic shapes",
            )
        return self.advance(x_BLD, positions_BL, state)

    def tables(self) -> tuple[Table, ...]:
        """Return constants with which :meth:`advance_sized` records the same operators for layers whose states differ
        in their sizes only; none by default. Dataclass fields that hold such sizes have the metadata
        ``xarch.kernels.SIZES_ONLY``."""
        return ()

    def advance_sized(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Like :meth:`advance` and :meth:`advance_fixed`, for a mixer with :meth:`tables`."""
        raise PlanError(
            f"mixer {self.kind!r} has tables of its sizes and does not read them",
            "implement `advance_sized`, or leave out `tables`",
        )

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        """Return the values of inner taps (``matrix``, ``heads``) that a stage matches."""
        raise ValueError(f"mixer {self.kind!r} has no inner taps; requested {sorted(wanted)}")

    def inner_layouts(self) -> dict[str, str]:
        """Map each tap that :meth:`inner` can return to its layout, in order of computation.

        A mixer that lists ``mixer_out`` computes its output in the same pass as its inner taps; the block then takes
        it from :meth:`inner` instead of also calling :meth:`forward`.
        """
        return {}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        """Map inner taps to sizes fixed by the architecture (``{"heads": {"H": 9, "E": 64}}``), checked by the plan."""
        return {}

    def no_decay(self) -> Collection[str]:
        """Return parameter names excluded from weight decay; by default those with fewer than 2 dimensions."""
        return [name for name, p in self.named_parameters() if p.ndim < 2]
