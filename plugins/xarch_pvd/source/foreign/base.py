"""Base of wrapped foreign fields: frozen tensors under their own names, and other density activations than exp.

Legend: N points, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_pvd.source.formats.record import FieldFile, need
from xarch_pvd.source.latent import LatentField

LOWEST = 1e-30
"""Density substituted where an activation is zero, to keep its logarithm finite."""


class ForeignField(LatentField):
    """Teacher-only field: it has its own feature and nothing to inherit."""

    def __init__(self, record: FieldFile) -> None:
        low, high = record.aabb[:3], record.aabb[3:]
        super().__init__(
            aabb=[list(low), list(high)],
            occupancy=record.occupancy,
            warp=record.warp,
            sigma_clip=record.sigma_clip or (-100.0, 30.0),
            background=record.background or (1.0, 1.0, 1.0),
        )
        self.arch = record.arch

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": [], "net": [n for n, _ in self.named_parameters()]}


class Layers(nn.Module):
    """Linear layers read from a file, with ReLU between them.

    Args:
        tensors, names: layers by the prefix of ``.weight`` and, where there is one, ``.bias``.
        where: name used in errors.
        skip: layer at which the input is concatenated in front again.
        last: whether ReLU follows the last layer too.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        names: Sequence[str],
        where: str,
        *,
        skip: int | None = None,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.skip, self.last = skip, last
        self.weights = nn.ParameterList([_copy(need(tensors, f"{n}.weight", where, (None, None))) for n in names])
        self.biases = nn.ParameterList([_copy(tensors[f"{n}.bias"]) for n in names if f"{n}.bias" in tensors])

    def forward(self, x_NC: Tensor) -> Tensor:
        first = x_NC
        biases = list(self.biases) or [None] * len(self.weights)
        for i, (weight, bias) in enumerate(zip(self.weights, biases, strict=True)):
            x_NC = F.linear(torch.cat((first, x_NC), dim=-1) if i == self.skip else x_NC, weight, bias)
            if self.last or i + 1 < len(self.weights):
                x_NC = F.relu(x_NC)
        return x_NC


def parameter(tensor: Tensor) -> nn.Parameter:
    """Wrap a tensor of a file as a frozen parameter."""
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)


def log_relu(x_N: Tensor) -> Tensor:
    """Return the logarithm of a density relu(x)."""
    return x_N.clamp_min(LOWEST).log()


def log_softplus(x_N: Tensor) -> Tensor:
    """Return the logarithm of a density softplus(x), which approaches x far below zero."""
    return torch.where(x_N < -15, x_N, F.softplus(x_N).clamp_min(LOWEST).log())


def octaves_by_coordinate(x_NC: Tensor, count: int, exponent: float | None = None, gain: float = 1.0) -> Tensor:
    """Return [sin(all), cos(all)] of gain · 2^e x, grouped by coordinate.

    Args:
        count: number of frequencies; 0 yields an empty encoding.
        exponent: e is evenly spaced from 0 to it; by default in integer steps.
    """
    last = count - 1 if exponent is None else exponent
    scale = gain * 2.0 ** torch.linspace(0.0, last, count, device=x_NC.device)
    angle_NA = (x_NC[:, :, None] * scale).flatten(1)
    return torch.cat((angle_NA.sin(), angle_NA.cos()), dim=-1)


def turns_by_coordinate(x_NC: Tensor, count: int, exponent: float) -> Tensor:
    """Return nerfstudio's encoding, with frequencies 2π 2^e x."""
    return octaves_by_coordinate(x_NC, count, exponent, 2 * math.pi)


def octaves_interleaved(x_NC: Tensor, count: int) -> Tensor:
    """Return torch-ngp's encoding [x, sin x, cos x, sin 2x, cos 2x, ...]."""
    parts = [x_NC]
    for octave in range(count):
        parts += [(2.0**octave * x_NC).sin(), (2.0**octave * x_NC).cos()]
    return torch.cat(parts, dim=-1)


def _copy(tensor: Tensor) -> nn.Parameter:
    return parameter(tensor.clone())
