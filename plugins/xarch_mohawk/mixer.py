"""What all recurrent mixers of this plugin share: project, convolve, recur, gate, project back.

Legend: B batch, L tokens, D width, H heads, P value width, I inner width = H P, X channels of the convolution, K its
taps, J = K - 1, N state size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.kernels import causal_conv1d, causal_conv1d_step, causal_conv_with_state, graph_form
from xarch_decoder.model.mixer import Mixer, SequenceInfo, StateSpec
from xarch_decoder.model.rotary import Rotation, rotation
from xarch_mohawk.channels import StateChannels

Z_BIAS = 1.2784645427610737
"""Value where silu is 1 with slope about 1: the gate starts as the identity and can still learn."""

O = TypeVar("O")
"""Operands of the recurrence."""


class RecurrentMixer(Mixer, Generic[O]):
    """out_proj of a gated recurrence whose inputs are rows of ``in_proj``, some of which pass a short convolution.

    Subclasses set the attributes before they call :meth:`build`, and define the recurrence.

    Attributes:
        heads, value_width: H and P.
        widths: rows of ``in_proj`` by part, in order.
        convolved: parts that pass the depthwise causal convolution, consecutive in ``widths``.
        frequencies: rotary inverse frequencies; empty without rotation.
        channels: which channels of an attention head the state vectors inherit.
    """

    sources: ClassVar[Mapping[str, str]]
    """Part -> "q", "k" or "v": the rows of the attention that it starts from."""

    heads: int
    value_width: int
    channels: StateChannels
    widths: Mapping[str, int]
    convolved: tuple[str, ...]
    frequencies: tuple[float, ...]
    activation: Callable[[Tensor], Tensor] | None = None
    """Applied to what the convolution gives."""

    def build(self, width: int, taps: int, *, in_bias: bool, conv_bias: bool, out_bias: bool) -> None:
        """Make the projections and the convolution."""
        channels, inner = sum(self.widths[part] for part in self.convolved), self.heads * self.value_width
        self.taps = taps
        self.in_proj = nn.Linear(width, sum(self.widths.values()), bias=in_bias)
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, bias=conv_bias)
        self.out_proj = nn.Linear(inner, width, bias=out_bias)

    @abstractmethod
    def start(self, half_life: float) -> None:
        """Set every parameter that no attention weight gives, for a half-life in tokens; without gradients."""

    @abstractmethod
    def arranged(self, y_BLX: Tensor, others: Mapping[str, Tensor], turn: Rotation) -> O:
        """Return the operands of the recurrence.

        Args:
            y_BLX: the convolved parts.
            others: the other parts, each [B, L, rows].
            turn: rotation of the tokens.
        """

    @abstractmethod
    def recur(self, parts: O, segments_BL: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what ``out_proj`` reads [B, L, I], and with ``state`` the state after the last token."""

    @abstractmethod
    def recurrent_state(self) -> StateSpec:
        """Return the state of the recurrence."""

    def rows(self, part: str) -> slice:
        """Return the rows of ``in_proj`` for a part."""
        return self._place(list(self.widths), part)

    def conv_rows(self, part: str) -> slice:
        """Return the channels of the convolution for a part."""
        return self._place(list(self.convolved), part)

    def _place(self, names: list[str], part: str) -> slice:
        start = sum(self.widths[name] for name in names[: names.index(part)])
        return slice(start, start + self.widths[part])

    @property
    def holds_gate(self) -> bool:
        """Return whether a bias can make the gate a constant."""
        return self.in_proj.bias is not None

    def start_gate(self) -> None:
        """Make the gate silu(z) 1 where a bias can hold it, else random; without gradients."""
        if self.in_proj.bias is not None:
            self.in_proj.bias[self.rows("z")] = Z_BIAS
            return
        generator = torch.Generator().manual_seed(0)
        rows_ID = self.in_proj.weight[self.rows("z")]
        rows_ID.copy_(torch.randn(rows_ID.shape, generator=generator) * rows_ID.shape[1] ** -0.5)

    def fold_gain(self) -> None:
        """Fold fixed factors of training into the weights, where a mixer has any; outputs do not change."""

    def filter(self) -> tuple[Tensor, Tensor | None]:
        """Return taps [X, K] and bias [X] of the convolution."""
        return self.conv1d.weight[:, 0], self.conv1d.bias

    def operands(self, x_BLD: Tensor, sequence: SequenceInfo, *, plain: bool = False) -> O:
        """Return the operands of the recurrence over whole sequences; ``plain`` omits the gain."""
        mixed_BLX, others = self.project(x_BLD)
        taps = (self.conv1d.weight[:, 0], self.conv1d.bias) if plain else self.filter()
        y_BLX = causal_conv1d(mixed_BLX, *taps, segment_ids_BL=sequence.segment_ids_BL)
        assert isinstance(y_BLX, Tensor)
        return self.arranged(self._activated(y_BLX), others, self.turn(sequence))

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        return self.out_proj(self._mixed(self.operands(x_BLD, sequence), sequence))

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        return self.read(self.operands(x_BLD, sequence), sequence, wanted)

    def read(self, parts: O, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        """Return the taps ``heads`` and ``mixer_out`` that are wanted."""
        mixed_BLI = self._mixed(parts, sequence)
        values = {"heads": mixed_BLI.unflatten(-1, (self.heads, self.value_width))}
        if "mixer_out" in wanted:
            values["mixer_out"] = self.out_proj(mixed_BLI)
        return {name: value for name, value in values.items() if name in wanted}

    def inner_layouts(self) -> dict[str, str]:
        return {"heads": "BLHE", "mixer_out": "BLD"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"heads": {"H": self.heads, "E": self.value_width}}

    def state_spec(self) -> tuple[StateSpec, ...]:
        return StateSpec("conv_state", (self.conv1d.out_channels, self.taps - 1)), self.recurrent_state()

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        conv_BXJ, recurrent = state
        mixed_BLX, others = self.project(x_BLD)
        taps = self.filter()
        if graph_form("recurrence") == "runtime":
            y_BLX, conv_BXJ = causal_conv_with_state(mixed_BLX, *taps, conv_BXJ)
        elif x_BLD.shape[1] == 1:
            y_BX, conv_BXJ = causal_conv1d_step(mixed_BLX[:, 0], *taps, conv_BXJ)
            y_BLX = y_BX[:, None]
        else:
            found = causal_conv1d(mixed_BLX, *taps, initial_state_BCJ=conv_BXJ, return_final_state=True)
            y_BLX, conv_BXJ = found[0], found[1]
        parts = self.arranged(self._activated(y_BLX), others, rotation(positions_BL, self.frequencies))
        mixed_BLI, after = self.recur(parts, None, recurrent)
        assert after is not None
        return self.out_proj(mixed_BLI), (conv_BXJ, after)

    def no_decay(self) -> Collection[str]:
        return ["conv1d.weight", *super().no_decay()]

    def turn(self, sequence: SequenceInfo) -> Rotation:
        """Return the rotation of whole sequences, shared by all layers."""
        key = ("rotation", self.frequencies, 1.0)
        return sequence.once(key, lambda: rotation(sequence.positions_BL, self.frequencies))

    def project(self, x_BLD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the convolution's input and the other parts.

        Long sequences use a separate product for each: the number of columns is then a multiple of the vector width,
        unlike in one product over all rows (some parts have one column per head), and no gradient is joined.
        """
        names = [name for name in self.widths if name not in self.convolved]
        first = next(iter(self.convolved))
        order = [name for name in self.widths if name not in self.convolved[1:]]
        channels = self.conv1d.in_channels
        rows = [channels if name == first else self.widths[name] for name in order]
        if x_BLD.shape[1] == 1 or torch.compiler.is_exporting():
            found = self.in_proj(x_BLD).split(rows, -1)
        else:
            bias = self.in_proj.bias
            biases = [None] * len(rows) if bias is None else bias.split(rows)
            weights = self.in_proj.weight.split(rows)
            found = [F.linear(x_BLD, weight, part) for weight, part in zip(weights, biases, strict=True)]
        by_name = dict(zip(order, found, strict=True))
        return by_name[first], {name: by_name[name] for name in names}

    def _activated(self, y_BLX: Tensor) -> Tensor:
        return y_BLX if self.activation is None else self.activation(y_BLX)

    def _mixed(self, parts: O, sequence: SequenceInfo) -> Tensor:
        return self.recur(parts, sequence.segment_ids_BL, None)[0]
