"""Discrete Mamba-2: a state-space mixer with one head per attention head (MOHAWK, arXiv 2408.10189, section 3).

Legend: B batch, L tokens, D width, H heads, P value width, N state size, K convolution taps, J = K - 1, X channels of
the convolution = H (P + 2 N), I inner width = H P.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.kernels import causal_conv1d, causal_conv1d_step, ssd, ssd_step
from xarch_decoder.factored import SSDFactors
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.mixer import Mixer, SequenceInfo, StateSpec
from xarch_decoder.model.rotary import Rotation, rotate, rotation
from xarch_mohawk.channels import StateChannels

Z_BIAS = 1.2784645427610737
"""Value where silu is 1 with slope about 1: the gate starts as the identity and can still learn."""


@dataclass(frozen=True)
class Factors:
    """Factors of the mixing matrix."""

    B_BLHN: Tensor
    C_BLHN: Tensor
    log_a_BLH: Tensor


@dataclass(frozen=True)
class Operands(Factors):
    """Inputs of the recurrence; ``gate`` multiplies its output."""

    x_BLHP: Tensor
    gate_BLI: Tensor


class DM2(Mixer):
    """out_proj(silu(z + z_bias) · M x) with M[t, s] = (C_t · B_s) exp(S_t - S_s) + D [t = s], S the sum of log a.

    The rows of ``in_proj`` are [x | B | C | z | alpha]. x, B and C pass a depthwise causal convolution without
    activation; log a = -softplus(alpha + alpha_bias), always in float32.

    ``gain`` is a fixed factor per head on C that holds the least-squares scale of the initialisation. Folded into the
    rows of C, it would make them a thousand times smaller than one Adam step, and the first steps would erase it.
    :meth:`fold_gain` moves it into the convolution after training.

    Args:
        facts: the decoder; H, P and the rotary frequencies are its attention's.
        layer: index of the block; all layers are built alike.
        channels: the channels of an attention head that C and B inherit.
        conv: taps of the convolution.
        rope: rotate C and B by position, as the teacher rotates q and k.
    """

    kind = "dm2"

    def __init__(self, facts: DecoderFacts, layer: int, *, channels: StateChannels, conv: int, rope: bool) -> None:
        super().__init__()
        self.channels, self.frequencies = channels, channels.frequencies if rope else ()
        self.heads, self.value_width, self.state_size, self.taps = facts.heads, facts.head_dim, channels.size, conv
        inner, state = self.heads * self.value_width, self.heads * self.state_size
        self.widths = {"x": inner, "B": state, "C": state, "z": inner, "alpha": self.heads}
        mixed = inner + 2 * state
        self.in_proj = nn.Linear(facts.width, sum(self.widths.values()), bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, conv, groups=mixed)
        self.alpha_bias = nn.Parameter(torch.zeros(self.heads))
        self.z_bias = nn.Parameter(torch.full((inner,), Z_BIAS))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(inner, facts.width, bias=facts.out_bias)
        self.gain: Tensor
        self.register_buffer("gain", torch.ones(self.heads))

    def rows(self, part: str) -> slice:
        """Return the rows of ``in_proj`` for "x", "B", "C", "z" or "alpha"; the first three also index the filter."""
        names = list(self.widths)
        start = sum(self.widths[name] for name in names[: names.index(part)])
        return slice(start, start + self.widths[part])

    @property
    def conv_bias(self) -> Tensor:
        """Return the bias of the convolution."""
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def fold_gain(self) -> None:
        """Multiply ``gain`` into the convolution's channels of C and set it to one; outputs do not change."""
        with torch.no_grad():
            weight_XK, bias_X = self._filter()
            self.conv1d.weight.copy_(weight_XK[:, None])
            self.conv_bias.copy_(bias_X)
            self.gain.fill_(1.0)

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        return self.out_proj(self._mix(self.operands(x_BLD, sequence), sequence))

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        mixes = "heads" in wanted or "mixer_out" in wanted
        parts: Factors = self.operands(x_BLD, sequence) if mixes else self.factors(x_BLD, sequence)
        values: dict[str, Any] = {}
        if "matrix" in wanted:
            segments_BL = sequence.segment_ids_BL
            values["matrix"] = SSDFactors(parts.C_BLHN, parts.B_BLHN, parts.log_a_BLH, self.D, segments_BL)
        if isinstance(parts, Operands):
            mixed_BLI = self._mix(parts, sequence)
            values["heads"] = mixed_BLI.unflatten(-1, (self.heads, self.value_width))
            if "mixer_out" in wanted:
                values["mixer_out"] = self.out_proj(mixed_BLI)
        return {name: value for name, value in values.items() if name in wanted}

    def inner_layouts(self) -> dict[str, str]:
        return {"matrix": "ssd-factors", "heads": "BLHE", "mixer_out": "BLD"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"matrix": {"H": self.heads}, "heads": {"H": self.heads, "E": self.value_width}}

    def state_spec(self) -> tuple[StateSpec, ...]:
        channels = self.conv1d.out_channels
        return (
            StateSpec("conv_state", (channels, self.taps - 1)),
            StateSpec("ssm_state", (self.heads, self.value_width, self.state_size)),
        )

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        conv_BXJ, ssm_BHPN = state
        mixed_BLX, z_BLI, alpha_BLH = self._project(x_BLD)
        weight_XK, bias_X = self._filter()
        if x_BLD.shape[1] == 1:
            y_BX, conv_BXJ = causal_conv1d_step(mixed_BLX[:, 0], weight_XK, bias_X, conv_BXJ)
            parts = self._operands(y_BX[:, None], z_BLI, alpha_BLH, self._turn(positions_BL))
            x_BHP, log_a_BH = parts.x_BLHP[:, 0], parts.log_a_BLH[:, 0]
            y_BHP, ssm_BHPN = ssd_step(x_BHP, log_a_BH, parts.B_BLHN[:, 0], parts.C_BLHN[:, 0], self.D, ssm_BHPN)
            y_BLHP = y_BHP[:, None]
        else:
            y_BLX, conv_BXJ = causal_conv1d(
                mixed_BLX, weight_XK, bias_X, initial_state_BCJ=conv_BXJ, return_final_state=True
            )
            parts = self._operands(y_BLX, z_BLI, alpha_BLH, self._turn(positions_BL))
            y_BLHP, ssm_BHPN = ssd(
                parts.x_BLHP,
                parts.log_a_BLH,
                parts.B_BLHN,
                parts.C_BLHN,
                self.D,
                initial_state_BHPN=ssm_BHPN,
                return_final_state=True,
            )
        return self.out_proj(y_BLHP.flatten(2) * parts.gate_BLI), (conv_BXJ, ssm_BHPN)

    def no_decay(self) -> Collection[str]:
        return ["conv1d.weight", *super().no_decay()]

    def operands(self, x_BLD: Tensor, sequence: SequenceInfo, *, plain: bool = False) -> Operands:
        """Return the operands of the recurrence over whole sequences; ``plain`` omits the gain."""
        mixed_BLX, z_BLI, alpha_BLH = self._project(x_BLD)
        weight_XK, bias_X = (self.conv1d.weight[:, 0], self.conv_bias) if plain else self._filter()
        y_BLX = causal_conv1d(mixed_BLX, weight_XK, bias_X, segment_ids_BL=sequence.segment_ids_BL)
        assert isinstance(y_BLX, Tensor)
        return self._operands(y_BLX, z_BLI, alpha_BLH, self._turn_of(sequence))

    def factors(self, x_BLD: Tensor, sequence: SequenceInfo) -> Factors:
        """Return only B, C and the decays over whole sequences: half of the products and of the convolution."""
        inner, scored = self.widths["x"], self.widths["B"] + self.widths["C"]
        _, scored_SD, _, alpha_HD = self.in_proj.weight.split([inner, scored, self.widths["z"], self.heads])
        weight_XK, bias_X = self._filter()
        y_BLS = causal_conv1d(
            F.linear(x_BLD, scored_SD), weight_XK[inner:], bias_X[inner:], segment_ids_BL=sequence.segment_ids_BL
        )
        assert isinstance(y_BLS, Tensor)
        return Factors(*self._factors(y_BLS, F.linear(x_BLD, alpha_HD), self._turn_of(sequence)))

    def _turn_of(self, sequence: SequenceInfo) -> Rotation:
        key = ("rotation", self.frequencies, 1.0)
        return sequence.once(key, lambda: self._turn(sequence.positions_BL))

    def _turn(self, positions_BL: Tensor) -> Rotation:
        return rotation(positions_BL, self.frequencies)

    def _filter(self) -> tuple[Tensor, Tensor]:
        """Return taps and bias of the convolution with the gain on C's channels; cheaper than scaling C itself."""
        plain_X = self.gain.new_ones(self.widths["x"] + self.widths["B"])
        scale_X = torch.cat([plain_X, self.gain[:, None].expand(-1, self.state_size).flatten()])
        return self.conv1d.weight[:, 0] * scale_X[:, None], self.conv_bias * scale_X

    def _project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the convolution's input, z and alpha.

        Long sequences use a separate product for each: the number of columns is then a multiple of the vector width,
        unlike in one product over all rows (alpha adds one column per head), and no gradient is joined from three.
        """
        rows = [self.conv1d.out_channels, self.widths["z"], self.heads]
        if x_BLD.shape[1] == 1 or torch.compiler.is_exporting():
            mixed_BLX, z_BLI, alpha_BLH = self.in_proj(x_BLD).split(rows, -1)
        else:
            mixed_BLX, z_BLI, alpha_BLH = (F.linear(x_BLD, part) for part in self.in_proj.weight.split(rows))
        return mixed_BLX, z_BLI, alpha_BLH

    def _operands(self, y_BLX: Tensor, z_BLI: Tensor, alpha_BLH: Tensor, turn: Rotation) -> Operands:
        x_BLI, y_BLS = y_BLX.split([self.widths["x"], self.widths["B"] + self.widths["C"]], -1)
        B_BLHN, C_BLHN, log_a_BLH = self._factors(y_BLS, alpha_BLH, turn)
        return Operands(
            B_BLHN=B_BLHN,
            C_BLHN=C_BLHN,
            log_a_BLH=log_a_BLH,
            x_BLHP=x_BLI.unflatten(-1, (self.heads, self.value_width)),
            gate_BLI=F.silu(z_BLI + self.z_bias),
        )

    def _factors(self, y_BLS: Tensor, alpha_BLH: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return B, C and log a from the convolution's channels of B and C, and from alpha."""
        B_BLHN, C_BLHN = (t.unflatten(-1, (self.heads, self.state_size)) for t in y_BLS.chunk(2, -1))
        wide = torch.promote_types(alpha_BLH.dtype, torch.float32)
        return rotate(B_BLHN, turn), rotate(C_BLHN, turn), -F.softplus(alpha_BLH.to(wide) + self.alpha_bias)

    def _mix(self, parts: Operands, sequence: SequenceInfo) -> Tensor:
        """Return the gated output of the recurrence [B, L, I]."""
        y_BLHP = ssd(
            parts.x_BLHP,
            parts.log_a_BLH,
            parts.B_BLHN,
            parts.C_BLHN,
            self.D,
            segment_ids_BL=sequence.segment_ids_BL,
        )
        assert isinstance(y_BLHP, Tensor)
        return y_BLHP.flatten(2) * parts.gate_BLI
