"""Tiled distance between the two matrices against the materialised one (spec check A3)."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xarch.errors import UsageError
from xarch.kernels import MatrixDistance, attention_matrix, matrix_distance, mixing_matrix, ssd

# Query heads, key heads, B/C groups.
HEADS = [(4, 4, 4), (6, 2, 6), (6, 3, 2), (4, 1, 1), (6, 2, 3)]
VALUE_LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}
GRADIENT_LIMIT = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@dataclass
class Case:
    q: Tensor
    k: Tensor
    C: Tensor
    B: Tensor
    log_a: Tensor
    D: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        """q, k, C and B rounded to a dtype, the others to a dtype that is never below float32."""
        wide = torch.promote_types(dtype, torch.float32)
        narrow = (t.to(dtype) for t in (self.q, self.k, self.C, self.B))
        return Case(*narrow, self.log_a.to(wide), self.D.to(wide))

    def student(self) -> list[Tensor]:
        return [self.C, self.B, self.log_a, self.D]

    def run(self, **kwargs: Any) -> tuple[MatrixDistance, list[Tensor]]:
        """Distance, and the gradients of a weighted sum of it for the student's factors."""
        leaves = [t.detach().clone().requires_grad_() for t in self.student()]
        result = matrix_distance(self.q, self.k, *leaves, **{"scale": 0.6} | kwargs)
        weight = torch.linspace(0.5, 2, result.distance_BH.numel()).view_as(result.distance_BH)
        (result.distance_BH * weight).sum().backward()
        return result, [t.grad for t in leaves]


def make(batch: int, length: int, heads: tuple[int, int, int], width: int = 5, size: int = 3, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, group = heads
    return Case(
        q=randn(batch, length, query, width),
        k=randn(batch, length, key, width),
        C=randn(batch, length, group, size) / size**0.5,
        B=randn(batch, length, group, size),
        log_a=-F.softplus(randn(batch, length, query) - 1),
        D=randn(query),
    )


def documents(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.15).long().cumsum(1) % 2


def padding(batch: int, length: int, *, left: bool) -> Tensor:
    """Sequence b has b tokens of padding less than half of the length."""
    count = torch.tensor([max(length // 2 - b, 0) for b in range(batch)])[:, None]
    real = torch.arange(length)[None] < length - count
    return real.flip(1) if left else real


def agree(got, want, error, dtype=torch.float64) -> None:
    for value, truth in zip(got[0], want[0], strict=True):
        assert error(value, truth) <= VALUE_LIMIT[dtype]
    for value, truth in zip(got[1], want[1], strict=True):
        # One token has no decay: its gradient is zero, not small, and what is found is rounding of order one.
        assert error(value, truth) <= (GRADIENT_LIMIT[dtype] if truth.any() else 1e-3)


@pytest.mark.parametrize("dtype", VALUE_LIMIT)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 55])
def test_equals_the_materialised_distance(length, heads, dtype, error):
    case = make(2, length, heads).to(dtype)
    got = case.run(tile=(16, 16), backend="torch")
    agree(got, case.to(torch.float64).run(backend="naive"), error, dtype)
    assert got[0].distance_BH.dtype == torch.promote_types(dtype, torch.float32)
    assert [g.dtype for g in got[1]] == [t.dtype for t in case.student()]


@pytest.mark.parametrize("tile", [(7, 16), (16, 7), (5, 5), (1, 3), (64, 64)])
@pytest.mark.parametrize("heads", HEADS[1:3])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 6},
        {"window": 40},
        {"softcap": 1.5},
        {"segment_ids_BL": documents(3, 41)},
        {"mask_BL": padding(3, 41, left=False)},
        {"mask_BL": padding(3, 41, left=True)},
        {"window": 9, "softcap": 2.0, "segment_ids_BL": documents(3, 41, 1), "mask_BL": padding(3, 41, left=False)},
    ],
    ids=lambda options: "+".join(options),
)
def test_every_option_with_tiles_that_do_not_divide(options, heads, tile, error):
    case = make(3, 41, heads)
    agree(case.run(tile=tile, backend="torch", **options), case.run(backend="naive", **options), error)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 33),
    heads=st.sampled_from(HEADS),
    width=st.integers(1, 6),
    size=st.integers(1, 6),
    tile=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.floats(0.5, 5),
    segmented=st.booleans(),
    padded=st.sampled_from([None, False, True]),
    skip=st.booleans(),
    cache=st.sampled_from([1, 300, 1 << 18]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    error, batch, length, heads, width, size, tile, window, softcap, segmented, padded, skip, cache, seed
):
    case = make(batch, length, heads, width, size, seed)
    if not skip:
        case.D.zero_()
    options = {
        "window": window,
        "softcap": softcap,
        "segment_ids_BL": documents(batch, length, seed) if segmented else None,
        "mask_BL": None if padded is None else padding(batch, length, left=padded),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("xarch.kernels.matrix_distance.visit"), "_CACHE_ELEMENTS", cache)
        got = case.run(tile=tile, backend="torch", **options)
    agree(got, case.run(backend="naive", **options), error)


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 2, 1)])
def test_gradcheck(heads):
    case = make(2, 7, heads, 2, 2)
    options = {"scale": 0.6, "tile": (3, 2), "segment_ids_BL": documents(2, 7), "backend": "torch"}
    leaves = [t.requires_grad_() for t in case.student()]
    assert torch.autograd.gradcheck(
        lambda *factors: matrix_distance(case.q, case.k, *factors, **options).distance_BH, leaves
    )


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_teacher_gets_no_gradient(backend):
    case = make(1, 9, HEADS[1])
    tensors = [getattr(case, f.name).requires_grad_() for f in fields(case)]
    result = matrix_distance(*tensors, scale=1.0, backend=backend)
    assert not result.teacher_norm_BH.requires_grad
    result.distance_BH.sum().backward()
    assert case.q.grad is None
    assert case.k.grad is None


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_no_skip_weight_and_no_gradient_wanted(backend, error):
    case = make(2, 20, HEADS[1])
    without = matrix_distance(case.q, case.k, case.C, case.B, case.log_a, None, scale=1.0, backend=backend, tile=(8, 8))
    case.D.zero_()
    zero = matrix_distance(case.q, case.k, *case.student(), scale=1.0, backend="naive")
    assert error(without.distance_BH, zero.distance_BH) <= 1e-12
    assert error(without.teacher_norm_BH, zero.teacher_norm_BH) <= 1e-12
    assert not without.distance_BH.requires_grad


@pytest.mark.parametrize("heads", [(2, 2, 2), (2, 2, 1)])
@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_equal_matrices_have_distance_and_gradient_zero(backend, heads):
    # A window of one token makes attention the identity, which is the skip weight alone.
    case = make(2, 12, heads)
    case.C.zero_()
    case.D.fill_(1)
    result, grads = case.run(window=1, backend=backend, tile=(5, 5))
    assert torch.equal(result.distance_BH, torch.zeros_like(result.distance_BH))
    assert torch.allclose(result.teacher_norm_BH, torch.full_like(result.teacher_norm_BH, math.sqrt(12)))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_mixing_matrix_is_what_ssd_applies(error):
    case = make(2, 23, HEADS[2])
    segments = documents(2, 23)
    x = torch.randn(2, 23, 6, 4, dtype=torch.float64)
    M = mixing_matrix(case.C, case.B, case.log_a, case.D, segment_ids_BL=segments)
    want = ssd(x, case.log_a, case.B, case.C, case.D, segment_ids_BL=segments, backend="naive")
    assert error(torch.einsum("bhts,bshp->bthp", M, x), want) <= 1e-12


def test_attention_matrix_is_what_torch_applies(error):
    case = make(2, 23, HEADS[1])
    v = torch.randn(2, 6, 23, 5, dtype=torch.float64)
    P = attention_matrix(case.q, case.k, scale=0.3)
    k = case.k.repeat_interleave(3, 2)
    want = F.scaled_dot_product_attention(case.q.transpose(1, 2), k.transpose(1, 2), v, is_causal=True, scale=0.3)
    assert error(P @ v, want) <= 1e-12
    assert torch.allclose(P.sum(-1), torch.ones(2, 6, 23, dtype=P.dtype))


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_decay_and_no_score_is_too_strong(heads, dtype, error):
    case = make(2, 60, heads)
    case.q *= 200
    case.log_a[:, ::3] = -1e30
    case.log_a[:, 1::3] = 0
    case = case.to(dtype)
    got = case.run(tile=(16, 16), backend="torch")
    agree(got, case.to(torch.float64).run(backend="naive"), error, dtype)


def test_prefix_sums_keep_their_digits_far_from_the_start(error):
    case = make(1, 1500, (1, 1, 1))
    case.log_a *= 10
    case = case.to(torch.float32)
    agree(case.run(backend="torch"), case.to(torch.float64).run(backend="naive"), error, torch.float32)


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 1, 1)])
def test_no_tensor_is_quadratic_in_tokens(heads):
    length, tile = 600, 32
    case = make(1, length, heads, 4, 4).to(torch.float32)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    with Largest() as tiled:
        case.run(tile=(tile, tile), backend="torch")
    with Largest() as dense:
        case.run(backend="naive")
    assert tiled.elements <= max(heads[0] * tile * tile, length * heads[0] * 4)
    assert dense.elements >= length * length


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2)])
def test_strides_do_not_matter(heads, error):
    case = make(2, 21, heads)
    dense = (case.q, case.k, case.C, case.B, case.log_a)
    strided = Case(*(t.transpose(0, -1).contiguous().transpose(0, -1) for t in dense), case.D)
    assert not strided.C.is_contiguous()
    agree(strided.run(tile=(8, 8), backend="torch"), case.run(tile=(8, 8), backend="torch"), error)


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2)])
def test_backward_twice_gives_the_same(heads):
    case = make(1, 19, heads)
    leaves = [t.requires_grad_() for t in case.student()]
    loss = matrix_distance(case.q, case.k, *leaves, scale=1.0, tile=(8, 8)).distance_BH.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_does_not_reach_the_tiles():
    case = make(1, 19, (4, 2, 4)).to(torch.float32)
    want = case.run(tile=(8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        got = case.run(tile=(8, 8))
    assert torch.equal(got[0].distance_BH, want[0].distance_BH)
    assert all(torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_no_tokens(backend):
    result, grads = make(2, 0, HEADS[1]).run(backend=backend)
    assert torch.equal(result.distance_BH, torch.zeros(2, 6, dtype=torch.float64))
    assert [g.shape[:2] for g in grads[:3]] == [(2, 0)] * 3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"k": torch.zeros(2, 9, 4, 5)}, {}, "4 key heads do not divide 6 heads"),
        ({"B": torch.zeros(2, 9, 6, 4)}, {}, r"B has shape \[2, 9, 6, 4\], want \[2, 9, 6, 3\]"),
        ({"log_a": torch.zeros(2, 9, 5)}, {}, "log_a has shape"),
        ({}, {"window": 0}, "window is 0"),
        ({}, {"tile": (0, 8)}, "tile is"),
        ({}, {"mask_BL": torch.ones(2, 8)}, "mask has shape"),
    ],
)
def test_wrong_arguments_are_named(change, options, message):
    case = make(2, 9, HEADS[1])
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(UsageError, match=message):
        case.run(**options)
