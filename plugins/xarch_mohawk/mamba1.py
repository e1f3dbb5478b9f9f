"""Mamba in MambaInLlama's mapping: queries, keys and values become C, B and x (arXiv 2408.15237, section 3).

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width, I = H E, N state size, G = I / N
groups that share B and C, X = K E channels of the convolution, R rank of the step size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch import PlanError
from xarch.kernels import selective_scan, selective_scan_step
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.mixer import SequenceInfo, StateSpec
from xarch_decoder.model.rotary import Rotation
from xarch_mohawk.channels import StateChannels
from xarch_mohawk.halflife import UNIT_STEP, HeadFit, decay_rate
from xarch_mohawk.mixer import RecurrentMixer

RANK_SHARE = 16
"""The step size of all channels is a projection of rank width / 16, as in Mamba."""


@dataclass(frozen=True)
class Operands:
    """Inputs of the scan, channels first as the kernel takes them."""

    x_BIL: Tensor
    dt_BIL: Tensor
    B_BGNL: Tensor
    C_BGNL: Tensor
    z_BIL: Tensor


class Mamba1(RecurrentMixer[Operands]):
    """out_proj(silu(z) · (h C + D x)), h_t = exp(dt A) h_{t-1} + dt x B with a state of N per channel.

    The rows of ``in_proj`` are [x | z | B | C | dt]. x passes a depthwise causal convolution and SiLU. x and B have the
    width of the teacher's keys and values, and their heads are repeated; channel i reads the vectors B and C of group
    ``i // N``, which are N consecutive channels of its head's key and query. Positions are not rotated.

    ``gain`` is a fixed factor per group on C that holds the least-squares scale of the initialisation (see ``DM2``).

    Args:
        facts: the decoder.
        layer: index of the block; all layers are built alike.
        size: state size N; it divides the width of a head.
        conv: taps of the convolution.

    Raises:
        PlanError: the state size does not divide the width of a head.
    """

    kind = "mamba1"
    sources: ClassVar = {"x": "v", "B": "k", "C": "q"}
    convolved = ("x",)

    def __init__(self, facts: DecoderFacts, layer: int, *, size: int, conv: int) -> None:
        super().__init__()
        if facts.head_dim % size:
            raise PlanError(
                f"student.options.state_size: {size} does not divide the {facts.head_dim} channels of a head",
                f"use {math.gcd(size, facts.head_dim)}",
            )
        self.channels, self.frequencies = StateChannels(tuple(range(facts.head_dim)), 0, ()), ()
        self.heads, self.value_width, self.state_size = facts.heads, facts.head_dim, size
        self.repeats, self.activation = facts.heads // facts.kv_heads, F.silu
        inner, shared, rank = (
            facts.heads * facts.head_dim,
            facts.kv_heads * facts.head_dim,
            -(-facts.width // RANK_SHARE),
        )
        self.widths = {"x": shared, "z": inner, "B": shared, "C": inner, "dt": rank}
        self.build(facts.width, conv, in_bias=True, conv_bias=True, out_bias=facts.out_bias)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, size))
        self.D = nn.Parameter(torch.ones(inner))
        self.gain: Tensor
        self.register_buffer("gain", torch.ones(inner // size))

    def start(self, half_life: float) -> None:
        self.start_gate()
        self._start_steps()
        self.A_log.fill_(math.log(decay_rate(half_life)))
        self.D.fill_(1.0)
        self.gain.fill_(1.0 / self.state_size)

    def set_heads(self, fit: HeadFit) -> None:
        """Write a solution of :class:`HalfLifeFit` whose heads are the groups."""
        self._start_steps()
        rates_G = torch.tensor([math.log(decay_rate(h)) for h in fit.half_life_H.tolist()])
        self.A_log.copy_(rates_G.repeat_interleave(self.state_size)[:, None])
        self.D.copy_(fit.skip_H.repeat_interleave(self.state_size))
        self.gain.copy_(fit.scale_H)

    def _start_steps(self) -> None:
        """Make every step 1; random rows let the projection to the channels learn."""
        generator = torch.Generator().manual_seed(0)
        rows_RD = self.in_proj.weight[self.rows("dt")]
        rows_RD.copy_(torch.randn(rows_RD.shape, generator=generator) * rows_RD.shape[1] ** -0.5)
        self.dt_proj.weight.zero_()
        self.dt_proj.bias.fill_(UNIT_STEP)

    def fold_gain(self) -> None:
        with torch.no_grad():
            scale_I, rows = self.gain.repeat_interleave(self.state_size), self.rows("C")
            self.in_proj.weight[rows] *= scale_I[:, None]
            self.in_proj.bias[rows] *= scale_I
            self.gain.fill_(1.0)

    def arranged(self, y_BLX: Tensor, others: Mapping[str, Tensor], turn: Rotation) -> Operands:
        return Operands(
            x_BIL=self._repeated(y_BLX).transpose(1, 2),
            dt_BIL=F.linear(others["dt"], self.dt_proj.weight).transpose(1, 2),
            B_BGNL=self._grouped(self._repeated(others["B"])).permute(0, 2, 3, 1),
            C_BGNL=self._grouped(others["C"]).permute(0, 2, 3, 1),
            z_BIL=others["z"].transpose(1, 2),
        )

    def _repeated(self, t_BLX: Tensor) -> Tensor:
        """Repeat whole heads for their query heads: [B, L, I]."""
        if self.repeats == 1:
            return t_BLX
        # Side by side, since accelerators take at most 4 dimensions.
        return torch.cat([t_BLX.unflatten(-1, (-1, self.value_width))] * self.repeats, -1).flatten(2)

    def _grouped(self, t_BLI: Tensor) -> Tensor:
        return t_BLI.unflatten(-1, (-1, self.state_size))

    def scalar_operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, B and C over whole sequences, each [B, L, G, N], without gain."""
        parts = self.operands(x_BLD, sequence)
        x_BLGN = self._grouped(parts.x_BIL.transpose(1, 2))
        B_BLGN, C_BLGN = (t.permute(0, 3, 1, 2) for t in (parts.B_BGNL, parts.C_BGNL))
        return x_BLGN, B_BLGN, C_BLGN

    def recurrent_state(self) -> StateSpec:
        return StateSpec("ssm_state", (self.heads * self.value_width, self.state_size))

    def recur(self, parts: Operands, segments_BL: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        C_BGNL = parts.C_BGNL * self.gain[:, None, None]
        operands = (parts.x_BIL, parts.dt_BIL, -self.A_log.exp(), parts.B_BGNL, C_BGNL, self.D, parts.z_BIL)
        bias_I = self.dt_proj.bias
        if state is None:
            y_BIL = selective_scan(*operands, dt_bias_D=bias_I, dt_softplus=True, segment_ids_BL=segments_BL)
        elif parts.x_BIL.shape[2] == 1:
            x, dt, A, B, C, D, z = operands
            y_BI, state = selective_scan_step(
                *(x[..., 0], dt[..., 0], A, B[..., 0], C[..., 0], D, z[..., 0], state),
                dt_bias_D=bias_I,
                dt_softplus=True,
            )
            y_BIL = y_BI[..., None]
        else:
            y_BIL, state = selective_scan(
                *operands, dt_bias_D=bias_I, dt_softplus=True, initial_state_BDN=state, return_final_state=True
            )
        assert isinstance(y_BIL, Tensor)
        return y_BIL.transpose(1, 2), state

    def no_decay(self) -> Collection[str]:
        return ["A_log", *super().no_decay()]
