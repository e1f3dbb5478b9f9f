"""The parts of a decoder block that a conversion keeps: norms, MLPs, head.

Legend: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, computed in float32 for every input dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide, weight = x.float(), self.weight.float()
        if torch.compiler.is_exporting():
            # Divide by a square root rather than use rsqrt: onnxruntime fuses the division into one node.
            return (wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * weight).to(x.dtype)
        return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with weight and bias, computed in float32 for every input dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


def make_norm(facts: DecoderFacts) -> RMSNorm | LayerNorm:
    """Build the decoder's norm over the model width."""
    return (RMSNorm if facts.norm == "rms" else LayerNorm)(facts.width, facts.norm_eps)


@dataclass(frozen=True)
class Hidden:
    """Hidden values of an MLP from what the layers give that read its input: act(gate) · up, or act(up)."""

    activation: str

    def __call__(self, *read: Tensor) -> Tensor:
        first = ACTIVATIONS[self.activation](read[0])
        return first * read[1] if len(read) > 1 else first


class MLP(nn.Module):
    """down(act(gate x) · up x) if gated, else down(act(up x))."""

    def __init__(self, facts: DecoderFacts) -> None:
        super().__init__()
        width, inner, bias = facts.width, facts.mlp_width, facts.mlp_bias
        self.hidden = Hidden(facts.activation)
        self.gate = nn.Linear(width, inner, bias=bias) if facts.mlp == "gated" else None
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.hidden(self.up(x_BLD)))
        return self.down(self.hidden(self.gate(x_BLD), self.up(x_BLD)))


class Head(nn.Module):
    """Output projection with its own weight, or with the embedding's when the two are tied."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, facts: DecoderFacts) -> None:
        super().__init__()
        self.softcap = facts.final_softcap
        weight_VD = None if facts.tied else nn.Parameter(torch.randn(facts.vocab, facts.width) * facts.width**-0.5)
        self.register_parameter("weight", weight_VD)
        self.register_parameter("bias", nn.Parameter(torch.zeros(facts.vocab)) if facts.head_bias else None)

    def forward(self, x_BLD: Tensor, weight_VD: Tensor) -> Tensor:
        """Return logits [B, L, V].

        Tokens are flattened first: a product of two matrices exports as one Gemm that reads the weight unchanged, so
        a tied embedding is stored once.
        """
        z_BLV = F.linear(x_BLD.flatten(0, 1), weight_VD, self.bias).unflatten(0, x_BLD.shape[:2])
        return z_BLV if self.softcap is None else self.softcap * torch.tanh(z_BLV / self.softcap)
