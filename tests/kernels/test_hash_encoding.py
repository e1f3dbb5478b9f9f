"""Hash encoding: levels as published, rows as in 32-bit unsigned arithmetic, every backend against the naive one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import HashConfig, hash_encode
from xarch.kernels.hash_encoding import level_table
from xarch.kernels.hash_encoding.corners import cells, rows, weights
from xarch.kernels.hash_encoding.cpp import hash_encode_cpp_backward, hash_encode_cpp_forward
from xarch.kernels.native import why_not

SMALL = HashConfig(levels=8, log2_size=11, base=8, finest=200)
FAST = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(why_not() is not None, reason="no compiler"))]


def points(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def table(config: HashConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(config.rows, config.features, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_levels_of_the_paper_preset() -> None:
    levels = level_table(HashConfig())
    assert [x.stride - 1 for x in levels if x.dense] == [16, 24, 34, 50, 72]
    assert [x.stride - 1 for x in levels if not x.dense] == [104, 151, 219, 317, 461, 669, 971, 1411, 2049]
    assert HashConfig().rows == 5_303_704


def test_other_styles_differ_in_strides_and_dense_levels() -> None:
    tcnn = level_table(HashConfig(levels=16, style="tcnn"))
    assert tcnn[0].stride == 16
    assert tcnn[0].size == 4096
    assert tcnn[0].dense
    hashed = level_table(HashConfig(levels=16, style="nerfstudio"))
    assert not any(x.dense for x in hashed)
    assert {x.size for x in hashed} == {2**19}
    assert (hashed[0].scale, hashed[0].shift) == (16.0, 0.0)


def test_rows_equal_unsigned_32_bit_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    for level in level_table(HashConfig()):
        cell = torch.randint(0, level.stride - 1, (10_000, 3), generator=generator)
        seen = rows(cell, level) - level.offset
        for corner in range(8):
            x, y, z = (cell[:, a].numpy().astype(np.uint32) + np.uint32(corner >> a & 1) for a in range(3))
            if level.dense:
                wanted = x + y * np.uint32(level.stride) + z * np.uint32(level.stride) ** 2
            else:
                wanted = (x ^ (y * np.uint32(2654435761)) ^ (z * np.uint32(805459861))) % np.uint32(level.size)
            assert np.array_equal(seen[:, corner].numpy(), wanted.astype(np.int64))
            assert wanted.max() < level.size


def test_weights_sum_to_one_and_interpolate_the_position() -> None:
    level = level_table(SMALL)[3]
    u = points(500, torch.float64)
    cell, fraction = cells(u, level)
    weight = weights(fraction)
    assert torch.allclose(weight.sum(1), torch.ones(500, dtype=torch.float64))
    corner = torch.tensor([[k >> a & 1 for a in range(3)] for k in range(8)], dtype=torch.float64)
    assert torch.allclose(cell + weight @ corner, u * level.scale + level.shift)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("features", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 63, 1000])
def test_forward_and_gradient_against_naive(backend: str, features: int, count: int) -> None:
    config = HashConfig(levels=5, features=features, log2_size=9, base=4, finest=70)
    weight = table(config).requires_grad_()
    u = points(count)
    truth = hash_encode(u, weight, config, backend="naive")
    seen = hash_encode(u, weight, config, backend=backend)
    assert seen.shape == (count, config.width)
    assert torch.allclose(seen, truth, atol=1e-5)
    upstream = torch.randn(seen.shape, generator=torch.Generator().manual_seed(3))
    (wanted,) = torch.autograd.grad(truth, weight, upstream)
    (gradient,) = torch.autograd.grad(seen, weight, upstream)
    assert torch.allclose(gradient, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("backend", FAST)
def test_sizes_from_a_file_and_points_outside(backend: str) -> None:
    config = HashConfig(levels=3, log2_size=9, base=4, finest=40, sizes=(216, 520, 504))
    u = points(200) * 3 - 1
    weight = table(config)
    seen = hash_encode(u, weight, config, backend=backend)
    assert torch.allclose(seen, hash_encode(u.clamp(0, 1), weight, config, backend="naive"), atol=1e-5)


@pytest.mark.skipif(why_not() is not None, reason="no compiler")
def test_cpp_is_the_same_on_more_threads_and_on_strided_points() -> None:
    weight = table(SMALL).requires_grad_()
    wide = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(4))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = hash_encode(wide[:, ::2], weight, SMALL, backend="cpp")
            found.append((out, *torch.autograd.grad(out.square().sum(), weight)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    plain = hash_encode(wide[:, ::2].contiguous(), weight, SMALL, backend="torch")
    assert torch.allclose(found[0][0], plain, atol=1e-5)


def test_position_gradient_falls_back_to_torch() -> None:
    u = (points(40, torch.float64) * 0.9 + 0.05).requires_grad_()
    weight = table(SMALL, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, t: hash_encode(u, t, SMALL), (u, weight), fast_mode=True)
    assert hash_encode(u.float(), weight.float(), SMALL).requires_grad


@pytest.mark.skipif(why_not() is not None, reason="no compiler")
def test_operators_of_the_compiled_backend() -> None:
    integers, floats = [], []
    for x in level_table(SMALL):
        integers += [x.stride, x.offset, x.size, int(x.dense)]
        floats += [x.scale, x.shift]
    weight = table(SMALL).requires_grad_()
    torch.library.opcheck(hash_encode_cpp_forward, (points(9), weight, integers, floats))
    upstream = torch.randn(9, SMALL.width)
    torch.library.opcheck(hash_encode_cpp_backward, (upstream, points(9), SMALL.rows, SMALL.features, integers, floats))
    compiled = torch.compile(lambda u, t: hash_encode(u, t, SMALL), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(points(9), weight), hash_encode(points(9), weight, SMALL))
    (seen,) = torch.autograd.grad(compiled(points(9), weight), weight, upstream)
    (wanted,) = torch.autograd.grad(hash_encode(points(9), weight, SMALL), weight, upstream)
    assert torch.equal(seen, wanted)


@settings(max_examples=15, deadline=None)
@given(
    levels=st.integers(1, 9),
    base=st.integers(2, 20),
    ratio=st.floats(1.0, 40.0),
    log2_size=st.integers(4, 12),
    count=st.integers(0, 130),
    style=st.sampled_from(["torch_ngp", "tcnn", "nerfstudio"]),
)
def test_any_configuration(levels: int, base: int, ratio: float, log2_size: int, count: int, style: str) -> None:
    config = HashConfig(levels=levels, log2_size=log2_size, base=base, finest=base * ratio, style=style)  # type: ignore[arg-type]
    u = points(count)
    truth = hash_encode(u.double(), table(config, torch.float64), config, backend="naive")
    assert torch.allclose(hash_encode(u, table(config), config).double(), truth, atol=2e-3)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(UsageError, match=r"want points \[N, 3\]"):
        hash_encode(torch.zeros(3, 2), table(SMALL), SMALL)
    with pytest.raises(UsageError, match="its levels want"):
        hash_encode(points(3), torch.zeros(5, 2), SMALL)
