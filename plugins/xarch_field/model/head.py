"""Density activation, spherical harmonics and the colour head that every feature field shares.

Sources: progressive volume distillation (arXiv 2211.15977); spherical harmonics with the signs of Instant-NGP (arXiv
2201.05989) and 3D Gaussian splatting (arXiv 2308.04079). Legend: N points, B basis functions, G geometry features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xarch import UsageError

FEATURES = 16
"""Width of the feature F = (raw log-density, 15 geometry features) that fields are aligned on."""


class _TruncExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * torch.exp(x.clamp(-12, 12))


def trunc_exp(x: Tensor) -> Tensor:
    """Return exp(x) with gradient g · exp(clamp(x, −12, 12)), which neither vanishes nor overflows."""
    return torch.exp(x) if torch.compiler.is_exporting() else _TruncExp.apply(x)


def spherical_harmonics(d_N3: Tensor, degree: int = 4) -> Tensor:
    """Return the degree² real basis functions of unit directions.

    Args:
        d_N3: unit directions.
        degree: 1 to 4.

    Returns:
        [N, degree²], ordered by band, with Condon–Shortley signs.

    Raises:
        UsageError: the degree is not supported.
    """
    if not 1 <= degree <= 4:
        raise UsageError(f"spherical harmonics support degrees 1 to 4, got {degree}")
    x, y, z = d_N3.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 1:
        basis += [-0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x]
    if degree > 2:
        xy, yz, xz, x2, y2, z2 = x * y, y * z, x * z, x * x, y * y, z * z
        basis += [
            1.0925484305920792 * xy,
            -1.0925484305920792 * yz,
            0.94617469575756 * z2 - 0.31539156525252,
            -1.0925484305920792 * xz,
            0.5462742152960396 * (x2 - y2),
        ]
    if degree > 3:
        basis += [
            0.5900435899266435 * y * (y2 - 3 * x2),
            2.890611442640554 * xy * z,
            0.4570457994644657 * y * (1 - 5 * z2),
            0.3731763325901154 * z * (5 * z2 - 3),
            0.4570457994644657 * x * (1 - 5 * z2),
            1.445305721320277 * z * (x2 - y2),
            0.5900435899266435 * x * (3 * y2 - x2),
        ]
    return torch.stack(basis, dim=-1)


class PlainMLP(nn.ModuleList):
    """Linear layers without bias, with ReLU between them; parameters are named ``0.weight``, ``1.weight``, ..."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        last = len(self) - 1
        for i, layer in enumerate(self):
            x = layer(x)
            if i < last:
                x = F.relu_(x)
        return x


class ColourHead(PlainMLP):
    """sigmoid(W₃ relu(W₂ relu(W₁ [SH₁₆(d), F₁..₁₅]))), widths 31, 64, 64, 3, no biases."""

    def __init__(self, features: int = FEATURES - 1, hidden: int = 64, degree: int = 4) -> None:
        super().__init__((degree * degree + features, hidden, hidden, 3))
        self.degree = degree

    def colour(self, g_NG: Tensor, d_N3: Tensor) -> Tensor:
        """Return colour in [0, 1] of points with geometry features ``g_NG`` seen along unit directions ``d_N3``."""
        return torch.sigmoid(self(torch.cat((spherical_harmonics(d_N3, self.degree), g_NG), dim=-1)))
