"""Mamba-2 as published: step sizes, SiLU after the convolution, a norm after the gate (Dao and Gu, arXiv 2405.21060).

Legend: B batch, L tokens, H heads, P value width, N state size, I inner width = H P, X channels of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.rotary import Rotation
from xarch_mohawk.channels import StateChannels
from xarch_mohawk.halflife import UNIT_STEP, HeadFit, decay_rate
from xarch_mohawk.scalar_decay import Operands, ScalarDecayMixer

LARGEST_SKIP = 1e3
"""Skip weights of the start are bounded: the norm leaves only their ratio to the recurrence."""


class GroupNorm(nn.Module):
    """RMS norm of every head, with a weight per channel, in float32."""

    def __init__(self, heads: int, width: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.weight = nn.Parameter(torch.ones(heads * width))

    def forward(self, y_BLI: Tensor) -> Tensor:
        wide_BLHP = y_BLI.to(torch.promote_types(y_BLI.dtype, torch.float32)).unflatten(-1, (self.heads, -1))
        normed_BLHP = wide_BLHP / torch.sqrt(wide_BLHP.square().mean(-1, keepdim=True) + self.eps)
        return (normed_BLHP.flatten(2) * self.weight).to(y_BLI.dtype)


class Mamba2(ScalarDecayMixer):
    """out_proj(norm(silu(z) · M x)) with M[t, s] = (C_t · B_s) dt_s exp(S_t - S_s) + D [t = s], S the sum of A dt.

    The rows of ``in_proj`` are [z | x | B | C | dt]; x, B and C pass a depthwise causal convolution and SiLU;
    dt = softplus(dt + dt_bias) and A = -exp(A_log). Every head has its own B and C (as many groups as heads), and the
    norm covers one head.

    Args:
        facts: the decoder; H and P are its attention's.
        layer: index of the block; all layers are built alike.
        channels: the channels of an attention head that C and B inherit.
        conv: taps of the convolution.
        bias: biases of both projections; without them the gate cannot start as a constant.
    """

    kind = "mamba2"

    def __init__(self, facts: DecoderFacts, layer: int, *, channels: StateChannels, conv: int, bias: bool) -> None:
        super().__init__()
        self.channels, self.frequencies, self.activation = channels, (), F.silu
        self.heads, self.value_width, self.state_size = facts.heads, facts.head_dim, channels.size
        inner, state = self.heads * self.value_width, self.heads * self.state_size
        self.widths = {"z": inner, "x": inner, "B": state, "C": state, "dt": self.heads}
        self.build(facts.width, conv, in_bias=bias, conv_bias=True, out_bias=bias)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GroupNorm(self.heads, self.value_width, facts.norm_eps)

    def start(self, half_life: float) -> None:
        self.start_gate()
        self.dt_bias.fill_(UNIT_STEP)
        self.A_log.fill_(math.log(decay_rate(half_life)))
        self.D.fill_(1.0)
        self.norm.weight.fill_(1.0)

    def set_heads(self, fit: HeadFit) -> None:
        """Write a solution of :class:`HalfLifeFit`; the norm takes away a head's scale, so that only D / c matters."""
        self.in_proj.weight[self.rows("dt")] = 0.0
        if self.in_proj.bias is not None:
            self.in_proj.bias[self.rows("dt")] = 0.0
        self.dt_bias.fill_(UNIT_STEP)
        self.A_log.copy_(torch.tensor([math.log(decay_rate(h)) for h in fit.half_life_H.tolist()]))
        scale_H = torch.where(fit.scale_H < 0, -1.0, 1.0) * fit.scale_H.abs().clamp_min(1e-12)
        self.D.copy_((fit.skip_H / scale_H).clamp(-LARGEST_SKIP, LARGEST_SKIP))

    def arranged(self, y_BLX: Tensor, others: Mapping[str, Tensor], turn: Rotation) -> Operands:
        x_BLHP, B_BLHN, C_BLHN = (
            t.unflatten(-1, (self.heads, -1)) for t in y_BLX.split([self.widths[part] for part in self.convolved], -1)
        )
        dt = others["dt"]
        dt_BLH = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + self.dt_bias)
        return Operands(
            # The step scales what is written; on B instead of x the skip weight keeps its meaning.
            B_BLHN=B_BLHN * dt_BLH[..., None],
            C_BLHN=C_BLHN,
            log_a_BLH=-self.A_log.exp() * dt_BLH,
            x_BLHP=x_BLHP,
            gate_BLI=F.silu(others["z"]),
        )

    def gated(self, y_BLI: Tensor, gate_BLI: Tensor) -> Tensor:
        return self.norm(y_BLI * gate_BLI)
