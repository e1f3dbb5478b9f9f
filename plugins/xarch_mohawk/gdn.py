"""Gated DeltaNet: a state that corrects what it holds for a key (Yang et al., arXiv 2412.06464).

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width, X channels of the convolution,
I inner width = H P.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.kernels import gated_delta, gated_delta_step, graph_form, linear_attention
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.layers import RMSNorm
from xarch_decoder.model.mixer import SequenceInfo, StateSpec
from xarch_decoder.model.rotary import Rotation, rotate
from xarch_mohawk.channels import StateChannels
from xarch_mohawk.halflife import decay_bias
from xarch_mohawk.mixer import RecurrentMixer

NORM_EPS = 1e-6
"""Added to the squared norms of queries and keys, as the reference has it."""


@dataclass(frozen=True)
class Operands:
    """Inputs of the recurrence; ``z`` gates its output."""

    q_BLHN: Tensor
    k_BLKN: Tensor
    v_BLKP: Tensor
    log_a_BLK: Tensor
    beta_BLK: Tensor
    z_BLI: Tensor


class GDN(RecurrentMixer[Operands]):
    """out_proj(silu(z) · S q) with S_t = a_t S_{t-1} (I - beta_t k_t k_tᵀ) + beta_t v_t k_tᵀ per key/value head.

    The rows of ``in_proj`` are [q | k | v | z | beta | alpha]. q, k and v pass a depthwise causal convolution; q and k
    have length 1, q times N^-1/2; beta is a sigmoid and log a = -exp(A_log) softplus(alpha + dt_bias), in float32.

    Args:
        facts: the decoder; H, P and the rotary frequencies are its attention's.
        layer: index of the block; all layers are built alike.
        channels: the channels of an attention head that q and k inherit.
        conv: taps of the convolution.
        rope: rotate q and k by position, as the teacher does.
        shared: one state per key/value head of the teacher; else one per query head.
        stock: the published form: SiLU after the convolution, an RMS norm of each head before the gate, no biases.
    """

    kind = "gdn"
    sources: ClassVar = {"q": "q", "k": "k", "v": "v"}
    convolved = ("q", "k", "v")

    def __init__(
        self,
        facts: DecoderFacts,
        layer: int,
        *,
        channels: StateChannels,
        conv: int,
        rope: bool,
        shared: bool,
        stock: bool,
    ) -> None:
        super().__init__()
        self.channels, self.frequencies = channels, channels.frequencies if rope else ()
        self.heads, self.value_width, self.key_width = facts.heads, facts.head_dim, channels.size
        self.states = facts.kv_heads if shared else facts.heads
        inner = self.heads * self.value_width
        self.widths = {
            "q": self.heads * self.key_width,
            "k": self.states * self.key_width,
            "v": self.states * self.value_width,
            "z": inner,
            "beta": self.states,
            "alpha": self.states,
        }
        self.activation = F.silu if stock else None
        self.build(facts.width, conv, in_bias=not stock, conv_bias=False, out_bias=facts.out_bias and not stock)
        self.A_log = nn.Parameter(torch.zeros(self.states))
        self.dt_bias = nn.Parameter(torch.zeros(self.states))
        self.norm = RMSNorm(self.value_width, facts.norm_eps) if stock else None

    def start(self, half_life: float) -> None:
        self.A_log.zero_()
        self.dt_bias.fill_(decay_bias(half_life))
        self.start_gate()
        if self.norm is not None:
            self.norm.weight.fill_(1.0)

    def set_states(self, half_life_K: Tensor, beta_K: Tensor) -> None:
        """Make decay and beta constants; beta stays 1/2 without biases."""
        for part in ("alpha", "beta"):
            self.in_proj.weight[self.rows(part)] = 0.0
        self.A_log.zero_()
        self.dt_bias.copy_(torch.tensor([decay_bias(h) for h in half_life_K.tolist()]))
        if self.in_proj.bias is not None:
            self.in_proj.bias[self.rows("beta")] = torch.logit(beta_K).to(self.in_proj.bias)

    def arranged(self, y_BLX: Tensor, others: Mapping[str, Tensor], turn: Rotation) -> Operands:
        q, k, v = y_BLX.split([self.widths[part] for part in self.convolved], -1)
        q_BLHN, k_BLKN = (_unit(t.unflatten(-1, (-1, self.key_width))) for t in (q, k))
        alpha = others["alpha"]
        dt_BLK = F.softplus(alpha.to(torch.promote_types(alpha.dtype, torch.float32)) + self.dt_bias)
        return Operands(
            q_BLHN=rotate(q_BLHN, turn) * self.key_width**-0.5,
            k_BLKN=rotate(k_BLKN, turn),
            v_BLKP=v.unflatten(-1, (-1, self.value_width)),
            log_a_BLK=-self.A_log.exp() * dt_BLK,
            beta_BLK=torch.sigmoid(others["beta"]),
            z_BLI=others["z"],
        )

    def delta_operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return q [B, L, H, N], k [B, L, K, N] and v [B, L, K, P] over whole sequences."""
        parts = self.operands(x_BLD, sequence)
        return parts.q_BLHN, parts.k_BLKN, parts.v_BLKP

    def recurrent_state(self) -> StateSpec:
        return StateSpec("delta_state", (self.states, self.key_width, self.value_width))

    def recur(self, parts: Operands, segments_BL: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        operands = (parts.q_BLHN, parts.k_BLKN, parts.v_BLKP, parts.log_a_BLK, parts.beta_BLK)
        if state is None:
            y_BLHP = gated_delta(*operands, segment_ids_BL=segments_BL)
        elif graph_form("recurrence") == "runtime":
            q, k, v, log_a, beta = operands
            y_BLHP, state = linear_attention(q, k, v, log_a, state, beta)
        elif parts.v_BLKP.shape[1] == 1:
            q, k, v, log_a, beta = (t[:, 0] for t in operands)
            y_BHP, state_BKPN = gated_delta_step(q, k, v, log_a, beta, state.mT)
            y_BLHP, state = y_BHP[:, None], state_BKPN.mT
        else:
            y_BLHP, state_BKPN = gated_delta(*operands, initial_state_BKPN=state.mT, return_final_state=True)
            state = state_BKPN.mT
        assert isinstance(y_BLHP, Tensor)
        if self.norm is not None:
            y_BLHP = self.norm(y_BLHP)
        return y_BLHP.flatten(2) * F.silu(parts.z_BLI), state


def _unit(t_BLHN: Tensor) -> Tensor:
    """The vectors at length 1, in float32 or wider."""
    wide = t_BLHN.to(torch.promote_types(t_BLHN.dtype, torch.float32))
    return (wide / torch.sqrt(wide.square().sum(-1, keepdim=True) + NORM_EPS)).to(t_BLHN.dtype)
