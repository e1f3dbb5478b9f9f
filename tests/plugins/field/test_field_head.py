"""Density activation, spherical harmonics, colour head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.errors import UsageError
from xarch_field import ColourHead, spherical_harmonics, trunc_exp


def directions(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=dtype), dim=-1)


def test_trunc_exp_has_its_own_gradient_only_where_exp_runs_away() -> None:
    x = torch.linspace(-11, 11, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(trunc_exp, (x,))
    far = torch.tensor([-40.0, 40.0], requires_grad=True)
    trunc_exp(far).sum().backward()
    assert torch.allclose(far.grad, torch.tensor([-12.0, 12.0]).exp())
    assert torch.equal(trunc_exp(far), far.exp())


def test_harmonics_equal_the_published_table() -> None:
    for d in directions(20).tolist():
        x, y, z = d
        table = [
            0.28209479,
            *(-0.48860251 * y, 0.48860251 * z, -0.48860251 * x),
            *(1.09254843 * x * y, -1.09254843 * y * z, 0.94617470 * z * z - 0.31539157, -1.09254843 * x * z),
            0.54627422 * (x * x - y * y),
            *(0.59004359 * y * (y * y - 3 * x * x), 2.89061144 * x * y * z, 0.45704580 * y * (1 - 5 * z * z)),
            *(0.37317633 * z * (5 * z * z - 3), 0.45704580 * x * (1 - 5 * z * z), 1.44530572 * z * (x * x - y * y)),
            0.59004359 * x * (3 * y * y - x * x),
        ]
        assert spherical_harmonics(torch.tensor([d]))[0].tolist() == pytest.approx(table, abs=2e-7)


def test_harmonics_are_orthonormal_on_the_sphere() -> None:
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(12))
    around = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    ring = (1 - nodes**2).sqrt()[:, None]
    d = torch.stack((ring * around.cos(), ring * around.sin(), nodes[:, None].expand(-1, 24)), dim=-1).view(-1, 3)
    area = (weights[:, None] * (2 * math.pi / 24)).expand(-1, 24).reshape(-1)
    basis = spherical_harmonics(d)
    assert torch.allclose((basis * area[:, None]).T @ basis, torch.eye(16, dtype=torch.float64), atol=1e-6)


def test_lower_degrees_are_the_first_functions() -> None:
    d = directions(7)
    for degree in (1, 2, 3):
        assert torch.equal(spherical_harmonics(d, degree), spherical_harmonics(d)[:, : degree**2])
    with pytest.raises(UsageError, match="degrees 1 to 4"):
        spherical_harmonics(d, 5)


def test_colour_head_is_three_plain_layers() -> None:
    torch.manual_seed(0)
    head = ColourHead().double()
    d, g = directions(9), torch.randn(9, 15, dtype=torch.float64)
    names = {n: tuple(p.shape) for n, p in head.named_parameters()}
    assert names == {"0.weight": (64, 31), "1.weight": (64, 64), "2.weight": (3, 64)}
    h = torch.cat((spherical_harmonics(d), g), dim=1)
    h = (h @ head[0].weight.T).clamp_min(0)
    h = (h @ head[1].weight.T).clamp_min(0)
    assert torch.allclose(head.colour(g, d), torch.sigmoid(h @ head[2].weight.T))
