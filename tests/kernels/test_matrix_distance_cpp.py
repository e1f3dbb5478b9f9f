"""Matrix distance in C++ against the materialised one in float64: values, gradients, options, torch.compile, faults."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xarch.errors import UsageError
from xarch.kernels import describe, dispatch, matrix_distance
from xarch.kernels.dispatch import select
from xarch.kernels.matrix_distance import cpp, cpp_launch
from xarch.kernels.native import BuildError, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason="needs a C++ compiler")

# Query heads, key heads, B/C groups.
HEADS = [(4, 4, 4), (6, 2, 6), (6, 3, 2), (4, 1, 1)]
LIMIT = 1e-5
Operands = list[Tensor]


def make(
    batch: int, length: int, heads: tuple[int, int, int], width: int = 5, size: int = 3, seed: int = 0
) -> Operands:
    """q, k, C, B, log_a and D in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, group = heads
    return [
        randn(batch, length, query, width),
        randn(batch, length, key, width),
        randn(batch, length, group, size) / size**0.5,
        randn(batch, length, group, size),
        -F.softplus(randn(batch, length, query) - 3),
        randn(query),
    ]


def documents(batch: int, length: int, seed: int = 0, often: float = 0.03) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < often).long().cumsum(1) % 2


def padding(batch: int, length: int, *, left: bool) -> Tensor:
    """Sequence b has b tokens of padding less than half of the length."""
    count = torch.tensor([max(length // 2 - b, 0) for b in range(batch)])[:, None]
    real = torch.arange(length)[None] < length - count
    return real.flip(1) if left else real


def results(operands: Operands, backend: str | None, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Distance, norm, and the gradients of a weighted sum of the distance for C, B, log_a and D."""
    q, k, *student = (t.detach().to(dtype) for t in operands)
    leaves = [t.requires_grad_() for t in student]
    found = matrix_distance(q, k, *leaves, **{"scale": 0.6, "backend": backend} | options)
    weight = torch.linspace(0.5, 2, found.distance_BH.numel()).view_as(found.distance_BH)
    return [*(t.detach() for t in found), *torch.autograd.grad((found.distance_BH * weight).sum(), leaves)]


def assert_close(got: list[Tensor], want: list[Tensor], limit: float = LIMIT) -> None:
    names = ["distance", "teacher norm", "dC", "dB", "dlog_a", "dD"]
    for name, a, b in zip(names, got, want, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all(), name
        # One token has no decay: its gradient is zero, not small.
        assert float((a.double() - b).norm()) <= limit * max(float(b.norm()), 1e-3), name


def assert_right(operands: Operands, limit: float = LIMIT, **options: Any) -> None:
    got = results(operands, "cpp", torch.float32, **options)
    assert_close(got, results(operands, "naive", torch.float64, **options), limit)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 201])
def test_values_and_gradients(length, heads):
    assert_right(make(2, length, heads, 20, 35))


@pytest.mark.parametrize("heads", HEADS[1:3])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 6},
        {"window": 100},
        {"softcap": 1.5},
        {"segment_ids_BL": documents(3, 201)},
        {"segment_ids_BL": documents(3, 201, often=0.3)},
        {"segment_ids_BL": (torch.arange(201) // 64).expand(3, -1)},
        {"mask_BL": padding(3, 201, left=False)},
        {"mask_BL": padding(3, 201, left=True)},
        {"window": 70, "softcap": 2.0, "segment_ids_BL": documents(3, 201, 1), "mask_BL": padding(3, 201, left=False)},
    ],
    ids=lambda options: "+".join(options),
)
def test_every_option(options, heads):
    assert_right(make(3, 201, heads), **options)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 150),
    heads=st.sampled_from(HEADS),
    width=st.integers(1, 40),
    size=st.integers(1, 70),
    window=st.none() | st.integers(1, 160),
    softcap=st.none() | st.floats(0.5, 5),
    segmented=st.booleans(),
    padded=st.sampled_from([None, False, True]),
    skip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, length, heads, width, size, window, softcap, segmented, padded, skip, seed):
    operands = make(batch, length, heads, width, size, seed)
    if not skip:
        operands[5].zero_()
    assert_right(
        operands,
        window=window,
        softcap=softcap,
        segment_ids_BL=documents(batch, length, seed) if segmented else None,
        mask_BL=None if padded is None else padding(batch, length, left=padded),
        scale=0.6 / width**0.5,
    )


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_no_decay_and_no_score_is_too_strong(softcap):
    operands = make(2, 150, (4, 2, 4))
    operands[0] *= 200
    operands[4][:, ::3] = -1e30
    operands[4][:, 1::3] = 0
    # A score of 600 has an error of 3e-5 in float32, and so has its exponential.
    assert_right(operands, 2e-4, softcap=softcap)


@pytest.mark.parametrize("log_a", [-90.0, -1e4])
@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 1, 1)])
def test_weak_decays_behind_strong_ones_keep_their_digits(log_a, heads):
    """A tile's prefix sums reach -1300, where float32 is 6e-5 apart."""
    operands = make(1, 200, heads)
    operands[4][:, ::3] = log_a
    segments = documents(1, 200)
    for options in ({}, {"segment_ids_BL": segments}):
        got = results(operands, "cpp", torch.float32, **options)
        assert_close(got, results(operands, "naive", torch.float64, **options), 3e-6)


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 1, 1)])
def test_tiles_whose_decays_vanish_count_for_the_teacher(heads):
    operands = make(1, 400, heads)
    operands[4] -= 0.5
    assert_right(operands)


def test_prefix_sums_keep_their_digits_far_from_the_start():
    operands = make(1, 1500, (1, 1, 1))
    operands[4] *= 50
    operands[4] = operands[4].float().double()
    assert_right(operands)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_inside(dtype):
    operands = [t.to(dtype) if i < 4 else t for i, t in enumerate(make(2, 90, (6, 3, 2)))]
    want = results(operands, "naive", torch.float64)
    leaves = [t.detach().float() if i >= 4 else t.detach() for i, t in enumerate(operands)]
    student = [t.requires_grad_() for t in leaves[2:]]
    found = matrix_distance(*leaves[:2], *student, scale=0.6, backend="cpp")
    assert found.distance_BH.dtype == torch.float32
    weight = torch.linspace(0.5, 2, 12).view(2, 6)
    grads = torch.autograd.grad((found.distance_BH * weight).sum(), student)
    assert [g.dtype for g in grads] == [dtype, dtype, torch.float32, torch.float32]
    exact = [found.distance_BH.detach(), found.teacher_norm_BH, *grads]
    for got, truth, limit in zip(exact, want, [LIMIT, LIMIT, 5e-3, 5e-3, LIMIT, LIMIT], strict=True):
        assert float((got.double() - truth).norm() / truth.norm()) <= limit


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2)])
def test_strides_do_not_matter(heads):
    dense = [t.float() for t in make(2, 70, heads)]
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in dense[:5]]
    sliced = [torch.cat([t, t + 1], 2)[:, :, : t.shape[2]] for t in dense[:4]]
    assert not strided[2].is_contiguous()
    want = results(dense, "cpp", torch.float32)
    for other in ([*strided, dense[5]], [*sliced, *dense[4:]]):
        got = results(other, "cpp", torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("heads", [(2, 2, 2), (2, 2, 1)])
def test_equal_matrices_have_distance_and_gradient_zero(heads):
    # A window of one token makes attention the identity, which is the skip weight alone.
    operands = make(2, 70, heads)
    operands[2].zero_()
    operands[5].fill_(1)
    distance, norm, *grads = results(operands, "cpp", torch.float32, window=1)
    assert torch.equal(distance, torch.zeros(2, 2))
    assert torch.allclose(norm, torch.full((2, 2), 70**0.5))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_padding_may_hold_anything():
    operands = make(2, 100, (4, 2, 2))
    mask = padding(2, 100, left=False)
    want = results(operands, "cpp", torch.float32, mask_BL=mask)
    for t in operands[:4]:
        t[~mask] = torch.nan
    got = results(operands, "cpp", torch.float32, mask_BL=mask)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("place", range(5))
def test_nan_comes_through(place):
    operands = [t.float() for t in make(1, 130, (2, 2, 2))]
    operands[place][0, 70, 1] = torch.nan
    found = matrix_distance(*operands, scale=0.6, backend="cpp")
    assert torch.isnan(found.distance_BH[0, 1])
    assert torch.isfinite(found.distance_BH[0, 0])


def test_teacher_gets_no_gradient_and_the_norm_has_none():
    tensors = [t.float().requires_grad_() for t in make(1, 9, HEADS[1])]
    result = matrix_distance(*tensors, scale=1.0, backend="cpp")
    assert not result.teacher_norm_BH.requires_grad
    (result.distance_BH / result.teacher_norm_BH).sum().backward()
    assert [t.grad is None for t in tensors] == [True, True, False, False, False, False]


@pytest.mark.parametrize("heads", HEADS[1:3])
def test_no_skip_weight_and_no_gradient_wanted(heads):
    operands = make(2, 70, heads)
    plain = [t.float() for t in operands[:5]]
    without = matrix_distance(*plain, None, scale=1.0, backend="cpp")
    operands[5].zero_()
    want = matrix_distance(*operands, scale=1.0, backend="naive")
    assert torch.allclose(without.distance_BH.double(), want.distance_BH, rtol=LIMIT)
    assert not without.distance_BH.requires_grad
    only = plain[3].requires_grad_()
    distance = matrix_distance(*plain[:3], only, plain[4], None, scale=1.0, backend="cpp").distance_BH
    truth = operands[3].requires_grad_()
    grad = torch.autograd.grad(matrix_distance(*operands, scale=1.0, backend="naive").distance_BH.sum(), truth)[0]
    got = torch.autograd.grad(distance.sum(), only)[0]
    assert float((got.double() - grad).norm() / grad.norm()) <= LIMIT


def test_no_second_derivative_is_an_error_not_a_wrong_number():
    q, k, *student = (t.float() for t in make(1, 9, (2, 2, 2)))
    leaves = [t.requires_grad_() for t in student]
    distance = matrix_distance(q, k, *leaves, scale=1.0, backend="cpp").distance_BH
    (dC,) = torch.autograd.grad(distance.sum(), leaves[:1], create_graph=True)
    with pytest.raises(UsageError, match="no second derivatives"):
        dC.square().sum().backward()


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2), (1, 1, 1)])
def test_threads_change_rounding_only_and_runs_nothing(heads):
    operands = make(1, 400, heads)
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 3, 4):
            torch.set_num_threads(threads)
            found[threads] = [results(operands, "cpp", torch.float32) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for first, *others in found.values():
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert_close(first, [t.double() for t in found[1][0]], 3e-6)


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 1, 1)])
def test_no_tensor_is_quadratic_in_tokens(heads):
    length = 600
    operands = make(1, length, heads, 4, 4)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    with Largest() as seen:
        results(operands, "cpp", torch.float32)
    assert 0 < seen.elements <= length * heads[0] * 4


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2)])
def test_nothing_to_compare(shape):
    batch, length, heads = shape
    distance, norm, *grads = results(make(batch, length, (heads, 1, 1)), "cpp", torch.float32)
    assert torch.equal(distance, torch.zeros(batch, heads))
    assert torch.equal(norm, torch.zeros(batch, heads))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_float64_is_left_to_the_plain_form():
    assert select("matrix_distance", "cpu", torch.float64).name == "torch"
    operands = [t.float() for t in make(1, 30, (2, 2, 2))]
    operands[0] = operands[0].double()
    assert matrix_distance(*operands, scale=1.0).distance_BH.dtype == torch.float64


@pytest.mark.parametrize(("dynamic", "heads"), [(False, (4, 2, 4)), (True, (4, 2, 4)), (False, (4, 2, 2))])
def test_compilers_of_models_see_through(dynamic, heads):
    q, k, *student = (t.float() for t in make(2, 70, heads))
    segments = documents(2, 70)

    def loss(*t: Tensor) -> Tensor:
        found = matrix_distance(q, k, *t, scale=0.6, segment_ids_BL=segments, window=20)
        return (found.distance_BH / found.teacher_norm_BH).sum()

    compiled_loss = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = []
    for function in (loss, compiled_loss):
        leaves = [t.clone().requires_grad_() for t in student]
        found.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 1, 1)])
def test_operators_keep_their_contract(heads):
    q, k, *student = (t.float() for t in make(1, 20, heads))
    leaves = [t.requires_grad_() for t in student]
    at_once = heads[2] == heads[0]
    arguments = (q, k, *leaves, None, padding(1, 20, left=True), 0.6, 7, None)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(cpp._forward, (*arguments, at_once), test_utils=tests)
    factor = torch.ones(1, 2)
    plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    torch.library.opcheck(cpp._backward, (factor, *plain), test_utils=("test_schema", "test_faketensor"))


def test_it_is_the_first_choice_but_never_exported():
    assert select("matrix_distance", "cpu", torch.float32).name == "cpp"
    operands = tuple(t.float() for t in make(1, 20, (2, 2, 2), 4, 4))

    class Distance(torch.nn.Module):
        def forward(self, *t: Tensor) -> Tensor:
            return matrix_distance(*t, scale=0.5).distance_BH

    with torch.no_grad():
        program = torch.export.export(Distance(), operands)
        want = Distance()(*operands)
    assert not any("cpp" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(*operands), want, rtol=LIMIT)


def test_without_a_compiler_the_plain_form_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused = next(c for c in describe() if c.op == "matrix_distance").refused
    assert "no-such-compiler" in refused["cpp"]
    assert select("matrix_distance", "cpu", torch.float32).name == "torch"
    with pytest.raises(UsageError, match="no-such-compiler"):
        select("matrix_distance", "cpu", torch.float32, backend="cpp")


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_a_library_that_fails_its_check_is_left_out_with_one_line(monkeypatch, caplog, fault):
    class Silent:
        @staticmethod
        def matrix_distance(_: Any, threads: int) -> int:
            """Writes nothing."""
            return 0

    def broken() -> ctypes.CDLL:
        raise BuildError("kernel matrix_distance: g++ failed: error: no such thing", "try again")

    monkeypatch.setattr(dispatch, "_VERDICTS", {})
    monkeypatch.setattr(cpp_launch, "_library", Silent if fault == "wrong" else broken)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert select("matrix_distance", "cpu", torch.float32).name == "torch"
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("matrix_distance: backend cpp is not used on cpu: ")
    with pytest.raises(UsageError, match="cannot run this call"):
        select("matrix_distance", "cpu", torch.float32, backend="cpp")


def test_memory_that_runs_out_is_an_error(monkeypatch):
    class Full:
        @staticmethod
        def matrix_distance(_: Any, threads: int) -> int:
            return 1

    monkeypatch.setattr(cpp_launch, "_library", Full)
    with pytest.raises(MemoryError, match="no memory for 1 x 9 tokens"):
        results(make(1, 9, (2, 2, 2)), "cpp", torch.float32)
