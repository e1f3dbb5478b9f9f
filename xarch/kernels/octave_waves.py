"""Sine and cosine of a value at doubling frequencies: the positional encoding of NeRF (arXiv 2003.08934, section 5.1).

Legend: ... any shape, O octaves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import tracing

HALF_TURN = (201 / 64, math.pi - 201 / 64)
"""π in two parts. The first has eight bits, so that its product with a whole number below 2¹⁶ is exact in float32."""
SINE = [2 * i * (2 * i + 1) for i in range(1, 7)]
COSINE = [(2 * i - 1) * 2 * i for i in range(1, 8)]
"""Ratios of successive Taylor coefficients; on [-π/2, π/2] the first term left out is below 1e-9."""


def octave_waves(x: Tensor, octaves: int) -> tuple[Tensor, Tensor]:
    """sin(2^k x) and cos(2^k x) for k = 0 ... octaves - 1, both [..., O, last dimension of x].

    In the exported form "polynomial" (see :data:`xarch.kernels.graph_forms.FORMS`) angles are reduced to [-π/2, π/2]
    by multiples of π and evaluated by polynomials, all in float32: no Sin, and no angle of hundreds of radians, which
    half precision could not hold.
    """
    scale_O1 = torch.tensor([2.0**k for k in range(octaves)], dtype=x.dtype, device=x.device)[:, None]
    angle = x[..., None, :] * scale_O1
    if tracing() and graph_form("waves") == "polynomial":
        return _by_polynomials(angle)
    return torch.sin(angle), torch.cos(angle)


def _by_polynomials(angle: Tensor) -> tuple[Tensor, Tensor]:
    turns = torch.floor(angle * (1 / math.pi) + 0.5)
    rest = angle - turns * HALF_TURN[0] - turns * HALF_TURN[1]
    sign = 1 - 2 * (turns - 2 * torch.floor(0.5 * turns))
    square = rest * rest
    return sign * rest * _nested(square, SINE), sign * _nested(square, COSINE)


def _nested(x: Tensor, ratios: list[int]) -> Tensor:
    """1 - x/r₁ (1 - x/r₂ (1 - ...)). Coefficients written out would be so small that optimisers take them for zero."""
    value = 1 - x * (1 / ratios[-1])
    for ratio in reversed(ratios[:-1]):
        value = 1 - x * (1 / ratio) * value
    return value
