"""Low-rank fits of partly known volumes recover what they can represent."""

from __future__ import annotations

import torch

from xarch_pvd.targets.low_rank import Volume, planes_times_lines, products_of_lines
from xarch_pvd.targets.representations.factor_fields import LINES, PLANES

AXES = list(zip(PLANES, LINES, strict=True))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_planes_times_lines_find_a_sum_of_three_groups_in_its_own_axes() -> None:
    generator = seeded()
    sizes = (7, 8, 9)
    truth = torch.zeros(*sizes, 2)
    for (a, b), c in AXES:
        plane = torch.randn(sizes[a], sizes[b], 2, generator=generator)
        line, mix = torch.randn(sizes[c], 2, generator=generator), torch.randn(2, 2, generator=generator)
        part = torch.einsum("abr,cr,kr->abck", plane, line, mix)
        order = (a, b, c, 3)
        truth += part.permute([order.index(i) for i in range(4)])
    known = torch.rand(sizes, generator=generator) < 0.8
    model = torch.zeros_like(truth)
    for ((a, b), c), (plane, line, mix) in zip(
        AXES, planes_times_lines(Volume(truth, known), AXES, 4, 150), strict=True
    ):
        part = torch.einsum("abr,cr,kr->abck", plane, line, mix)
        order = (a, b, c, 3)
        model += part.permute([order.index(i) for i in range(4)])
    error = (model - truth)[known].square().mean() / truth[known].square().mean()
    assert error < 1e-3


def test_products_of_lines_find_a_product() -> None:
    generator = seeded()
    parts = [torch.randn(s, 3, generator=generator) for s in (9, 8, 7, 2)]
    truth = torch.einsum("xr,yr,zr,kr->xyzk", *parts)
    known = torch.rand(9, 8, 7, generator=generator) < 0.8
    model = torch.einsum("xr,yr,zr,kr->xyzk", *products_of_lines(Volume(truth, known), 5, 200))
    error = (model - truth).square().mean() / truth.square().mean()
    assert error < 1e-2, "unknown cells follow from the known ones"


def test_a_value_at_a_limit_is_met_by_anything_beyond() -> None:
    value = torch.tensor([-5.0, -5.0, 9.0, 9.0, 1.0, 1.0]).view(6, 1, 1, 1)
    known = torch.tensor([True, True, True, True, True, False]).view(6, 1, 1)
    model = torch.tensor([-3.0, 0.0, 8.0, 5.0, 3.0, 3.0]).view(6, 1, 1, 1)
    lack = Volume(value, known, -2.0, 7.0).residual(model).flatten()
    assert lack.tolist() == [0.0, -2.0, 0.0, 2.0, -2.0, 0.0]
