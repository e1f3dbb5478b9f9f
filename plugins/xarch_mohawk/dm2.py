"""Discrete Mamba-2: a state-space mixer with one head per attention head (MOHAWK, arXiv 2408.10189, section 3).

Legend: B batch, L tokens, D width, H heads, P value width, N state size, K convolution taps, X channels of the
convolution = H (P + 2 N), S its channels of B and C, I inner width = H P.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.kernels import causal_conv1d
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.mixer import SequenceInfo
from xarch_decoder.model.rotary import Rotation, rotate
from xarch_mohawk.channels import StateChannels
from xarch_mohawk.halflife import HeadFit, decay_bias
from xarch_mohawk.mixer import Z_BIAS
from xarch_mohawk.scalar_decay import Factors, Operands, ScalarDecayMixer


class DM2(ScalarDecayMixer):
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
        self.heads, self.value_width, self.state_size = facts.heads, facts.head_dim, channels.size
        inner, state = self.heads * self.value_width, self.heads * self.state_size
        self.widths = {"x": inner, "B": state, "C": state, "z": inner, "alpha": self.heads}
        self.build(facts.width, conv, in_bias=False, conv_bias=True, out_bias=facts.out_bias)
        self.alpha_bias = nn.Parameter(torch.zeros(self.heads))
        self.z_bias = nn.Parameter(torch.full((inner,), Z_BIAS))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.gain: Tensor
        self.register_buffer("gain", torch.ones(self.heads))

    @property
    def conv_bias(self) -> Tensor:
        """Return the bias of the convolution."""
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    @property
    def holds_gate(self) -> bool:
        return True

    def start(self, half_life: float) -> None:
        self.z_bias.fill_(Z_BIAS)
        self.alpha_bias.fill_(decay_bias(half_life))
        self.D.fill_(1.0)
        self.gain.fill_(1.0 / self.state_size)

    def set_heads(self, fit: HeadFit) -> None:
        """Write a solution of :class:`HalfLifeFit`: alpha_bias, D and the fixed gain."""
        self.in_proj.weight[self.rows("alpha")] = 0.0
        self.alpha_bias.copy_(torch.tensor([decay_bias(h) for h in fit.half_life_H.tolist()]))
        self.D.copy_(fit.skip_H)
        self.gain.copy_(fit.scale_H)

    def fold_gain(self) -> None:
        with torch.no_grad():
            weight_XK, bias_X = self.filter()
            self.conv1d.weight.copy_(weight_XK[:, None])
            self.conv_bias.copy_(bias_X)
            self.gain.fill_(1.0)

    def filter(self) -> tuple[Tensor, Tensor]:
        """Return taps and bias of the convolution with the gain on C's channels; cheaper than scaling C itself."""
        plain_X = self.gain.new_ones(self.widths["x"] + self.widths["B"])
        scale_X = torch.cat([plain_X, self.gain[:, None].expand(-1, self.state_size).flatten()])
        return self.conv1d.weight[:, 0] * scale_X[:, None], self.conv_bias * scale_X

    def factors(self, x_BLD: Tensor, sequence: SequenceInfo) -> Factors:
        """Return only B, C and the decays over whole sequences: half of the products and of the convolution."""
        inner, scored = self.widths["x"], self.widths["B"] + self.widths["C"]
        _, scored_SD, _, alpha_HD = self.in_proj.weight.split([inner, scored, self.widths["z"], self.heads])
        weight_XK, bias_X = self.filter()
        y_BLS = causal_conv1d(
            F.linear(x_BLD, scored_SD), weight_XK[inner:], bias_X[inner:], segment_ids_BL=sequence.segment_ids_BL
        )
        assert isinstance(y_BLS, Tensor)
        return Factors(*self._factors(y_BLS, F.linear(x_BLD, alpha_HD), self.turn(sequence)))

    def arranged(self, y_BLX: Tensor, others: Mapping[str, Tensor], turn: Rotation) -> Operands:
        x_BLI, y_BLS = y_BLX.split([self.widths["x"], self.widths["B"] + self.widths["C"]], -1)
        B_BLHN, C_BLHN, log_a_BLH = self._factors(y_BLS, others["alpha"], turn)
        return Operands(
            B_BLHN=B_BLHN,
            C_BLHN=C_BLHN,
            log_a_BLH=log_a_BLH,
            x_BLHP=x_BLI.unflatten(-1, (self.heads, self.value_width)),
            gate_BLI=F.silu(others["z"] + self.z_bias),
        )

    def _factors(self, y_BLS: Tensor, alpha_BLH: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return B, C and log a from the convolution's channels of B and C, and from alpha."""
        B_BLHN, C_BLHN = (t.unflatten(-1, (self.heads, self.state_size)) for t in y_BLS.chunk(2, -1))
        wide = torch.promote_types(alpha_BLH.dtype, torch.float32)
        return rotate(B_BLHN, turn), rotate(C_BLHN, turn), -F.softplus(alpha_BLH.to(wide) + self.alpha_bias)
