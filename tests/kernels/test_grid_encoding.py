"""Products of interpolated grids: against explicit interpolation, PyTorch's own sampler, and each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import grid_encode
from xarch.kernels.grid_encoding.cpp import grid_encode_cpp_backward, grid_encode_cpp_forward
from xarch.kernels.native import why_not

FAST = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(why_not() is not None, reason="no compiler"))]
ALL = ["naive", *FAST]
Groups = list[list[tuple[Tensor, tuple[int, ...]]]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(9))


def several(channels: int = 19) -> Groups:
    """A plane times a line, three lines, a volume."""
    return [
        [(randn(5, 6, channels, seed=1), (2, 0)), (randn(7, channels, seed=2), (1,))],
        [(randn(4 + a, 3, seed=3 + a), (a,)) for a in range(3)],
        [(randn(4, 5, 3, 2, seed=6), (0, 1, 2))],
    ]


def by_hand(u: list[float], table: Tensor, axes: tuple[int, ...]) -> list[float]:
    """Linear interpolation of one point in plain Python."""
    places = [u[a] * (size - 1) for a, size in zip(axes, table.shape, strict=False)]
    total = [0.0] * table.shape[-1]
    for bits in itertools.product((0, 1), repeat=len(axes)):
        weight, index = 1.0, []
        for place, bit, size in zip(places, bits, table.shape, strict=False):
            low = min(math.floor(place), size - 2)
            weight *= place - low if bit else 1 - (place - low)
            index.append(low + bit)
        total = [t + weight * v for t, v in zip(total, table[tuple(index)].tolist(), strict=True)]
    return total


@pytest.mark.parametrize("backend", ALL)
def test_against_interpolation_by_hand(backend: str) -> None:
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 1.0, 0.0]])
    u = torch.cat((points(20), corners))
    groups = several(5)
    seen = grid_encode(u, groups, backend=backend)
    for i, place in enumerate(u.tolist()):
        wanted: list[float] = []
        for group in groups:
            values = [by_hand(place, *factor) for factor in group]
            wanted += [math.prod(column) for column in zip(*values, strict=True)]
        assert seen[i].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_against_grid_sample(backend: str) -> None:
    volume, u = randn(5, 6, 7, 3), points(50)
    place = (2 * u - 1).flip(-1)[None, :, None, None]
    wanted = F.grid_sample(volume.permute(3, 0, 1, 2)[None], place, align_corners=True)[0, :, :, 0, 0].T
    assert torch.allclose(grid_encode(u, [[(volume, (0, 1, 2))]], backend=backend), wanted, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("channels", [1, 8, 24, 33])
@pytest.mark.parametrize("count", [0, 1, 1500])
def test_forward_and_gradients_against_naive(backend: str, channels: int, count: int) -> None:
    groups, u = several(channels), points(count)
    leaves = [t.requires_grad_() for group in groups for t, _ in group]
    truth = grid_encode(u.double(), [[(t.double(), a) for t, a in g] for g in groups], backend="naive")
    seen = grid_encode(u, groups, backend=backend)
    assert torch.allclose(seen.double(), truth, atol=1e-5)
    upstream = randn(*seen.shape, seed=8)
    wanted = torch.autograd.grad(truth, leaves, upstream.double())
    for a, b in zip(torch.autograd.grad(seen, leaves, upstream), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("backend", FAST)
def test_slices_of_channels_and_turned_tables(backend: str) -> None:
    volume, plane = randn(5, 6, 4, 9).requires_grad_(), randn(6, 5, 7).requires_grad_()
    groups: Groups = [[(volume[..., 2:5], (0, 1, 2))], [(plane.transpose(0, 1), (0, 2))]]
    u = points(70)
    seen, wanted = (grid_encode(u, groups, backend=b) for b in (backend, "naive"))
    assert torch.allclose(seen, wanted, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(v.sin().sum(), (volume, plane)) for v in (seen, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_positions_get_gradients_and_points_outside_the_nearest_face() -> None:
    groups = [[(t.double(), a) for t, a in g] for g in several(2)]
    u = (points(20).double() * 0.9 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: grid_encode(u, groups), (u,), fast_mode=True)
    outside = points(30) * 3 - 1
    assert torch.allclose(grid_encode(outside, several()), grid_encode(outside.clamp(0, 1), several()))


@pytest.mark.skipif(why_not() is not None, reason="no compiler")
def test_cpp_is_the_same_on_more_threads() -> None:
    groups, u, found = several(40), points(5000), []
    leaves = [t.requires_grad_() for group in groups for t, _ in group]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            out = grid_encode(u, groups, backend="cpp")
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(why_not() is not None, reason="no compiler")
def test_operators_of_the_compiled_backend() -> None:
    tables = [randn(5, 6, 3).requires_grad_(), randn(7, 3).requires_grad_()]
    layout = [2, 2, 2, 0, 1, 1]
    torch.library.opcheck(grid_encode_cpp_forward, (points(9), tables, layout))
    torch.library.opcheck(grid_encode_cpp_backward, (randn(9, 3), points(9), [t.detach() for t in tables], layout))
    compiled = torch.compile(
        lambda u, p, q: grid_encode(u, [[(p, (2, 0)), (q, (1,))]]), backend="aot_eager", fullgraph=True
    )
    plain = grid_encode(points(9), [[(tables[0], (2, 0)), (tables[1], (1,))]])
    assert torch.equal(compiled(points(9), *tables), plain)
    seen = torch.autograd.grad(compiled(points(9), *tables).sum(), tables)
    assert all(torch.equal(a, b) for a, b in zip(seen, torch.autograd.grad(plain.sum(), tables), strict=True))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    channels=st.integers(1, 20),
    factors=st.integers(1, 5),
    count=st.integers(0, 40),
)
def test_any_shape(shape: list[int], channels: int, factors: int, count: int) -> None:
    axes = tuple(range(len(shape)))
    groups = [[(randn(*shape, channels, seed=f), axes) for f in range(factors)]]
    truth = grid_encode(points(count).double(), groups, backend="naive")
    assert torch.allclose(grid_encode(points(count), groups).double(), truth, atol=1e-3)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(UsageError, match=r"want points \[N, 3\]"):
        grid_encode(torch.zeros(3, 2), several())
    with pytest.raises(UsageError, match="have \\[2, 3\\] channels"):
        grid_encode(points(3), [[(randn(4, 2), (0,)), (randn(4, 3), (1,))]])
    with pytest.raises(UsageError, match="want one dimension of at least 2 samples"):
        grid_encode(points(3), [[(randn(1, 2), (0,))]])
