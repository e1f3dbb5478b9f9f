"""The matrix distance in Triton kernels against both matrices."""

from __future__ import annotations

import pytest
import torch
from agreement import relative_errors
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.kernels import gpu, matrix_distance


def make(batch, length, heads, keys, groups, width, size, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_a = -torch.nn.functional.softplus(2 * randn(batch, length, heads))
    C, B = randn(batch, length, groups, size), randn(batch, length, groups, size)
    return [randn(batch, length, heads, width), randn(batch, length, keys, width), C, B, log_a, randn(heads)]


def documents(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.05).long().cumsum(1) % 2


def padding(batch, length):
    """Left padding in one row, right padding in the next."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    mask[-1, length - length // 4 :] = False
    return mask


def run(**options):
    def call(backend, q, k, C, B, log_a, D=None):
        return matrix_distance(q, k, C, B, log_a, D, scale=0.4, backend=backend, **options)

    return call


def assert_close(errors: list[float]) -> None:
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("length", [1, 2, 31, 130])
def test_lengths(length):
    assert_close(relative_errors(run(), make(1, length, 2, 2, 2, 4, 3)))


@pytest.mark.parametrize("groups", [2, 1])
@pytest.mark.parametrize("options", ["documents", "padding", "window", "small window", "softcap", "all"])
def test_what_a_call_can_have(options, groups):
    features = {
        "documents": {"segment_ids_BL": documents(2, 100)},
        "padding": {"mask_BL": padding(2, 100)},
        "window": {"window": 40},
        "small window": {"window": 1},
        "softcap": {"softcap": 0.7},
    }
    chosen = {k: v for name, f in features.items() for k, v in f.items() if options in (name, "all")}
    if options == "all":
        chosen["window"] = 20
    operands = make(2, 100, 2, 1, groups, 4, 3)
    assert_close(relative_errors(run(**chosen), operands))


@pytest.mark.parametrize("programs", [1, 10**9])
def test_heads_of_a_group_in_one_program_or_in_several(programs, monkeypatch):
    monkeypatch.setattr(gpu, "_PROGRAMS", programs)
    assert_close(relative_errors(run(), make(1, 70, 4, 2, 2, 4, 3)))


@pytest.mark.parametrize(("width", "size"), [(130, 3), (3, 130), (17, 33)])
def test_wide_heads_and_large_states(width, size):
    assert_close(relative_errors(run(), make(1, 40, 1, 1, 1, width, size)))


def test_no_tokens():
    distance, norm = run()("triton", *make(2, 0, 2, 2, 2, 4, 3))
    assert torch.equal(distance, torch.zeros(2, 2))
    assert torch.equal(norm, torch.zeros(2, 2))


def test_without_skip_and_without_gradient():
    operands = make(1, 40, 2, 1, 2, 4, 3)[:5]
    assert_close(relative_errors(run(), operands))
    with torch.no_grad():
        got, want = run()("triton", *operands), run()("naive", *operands)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_float32_decay(dtype):
    dtypes = [dtype, dtype, dtype, dtype, torch.float32, torch.float32]
    assert max(relative_errors(run(), make(1, 50, 2, 1, 1, 4, 3), dtypes=dtypes)) <= 1e-2


@pytest.mark.parametrize("log_a", [0.0, -1e-7, -90.0, -1e4])
def test_no_decay_is_too_weak_or_too_strong(log_a):
    operands = make(1, 150, 2, 2, 2, 4, 4)
    operands[4][:, ::3] = log_a
    assert_close(relative_errors(run(), operands))


def test_strides_do_not_matter():
    q, k, C, B, log_a, D = make(2, 37, 4, 2, 2, 5, 3)
    want = run()("triton", q, k, C, B, log_a, D)
    together = torch.cat([q.flatten(2), k.flatten(2), C.flatten(2), B.flatten(2)], -1)
    parts = together.split([20, 10, 6, 6], -1)
    views = [part.unflatten(2, (-1, n)) for part, n in zip(parts, (5, 5, 3, 3), strict=True)]
    got = run()("triton", *views, log_a.transpose(1, 2).contiguous().transpose(1, 2), D)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_equal_matrices_have_no_gradient():
    q, k, C, B, log_a, _ = make(1, 1, 1, 1, 1, 2, 2)
    leaves = [(C * 0).requires_grad_(), B.requires_grad_(), log_a.requires_grad_(), torch.ones(1).requires_grad_()]
    distance = run()("triton", q, k, *leaves).distance_BH
    assert distance.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(distance.sum(), leaves))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 1])
def test_the_operator_is_well_formed(groups):
    q, k, C, B, log_a, D = make(1, 20, 2, 1, groups, 4, 4)
    student = [t.requires_grad_() for t in (C, B, log_a, D)]
    arguments = (*student, q, k, None, None, None, 0.5, None, None, groups == 2)
    # Saved for the backward pass, these are outputs that no caller sees; only the distance is differentiated.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.xarch.matrix_distance_triton_forward, arguments, test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 1])
def test_compiled_whole(groups):
    compiled = torch.compile(run(window=9), fullgraph=True, backend="aot_eager")

    def call(backend, *operands):
        return (compiled if backend == "triton" else run(window=9))(backend, *operands)

    assert_close(relative_errors(call, make(1, 20, 2, 1, groups, 4, 4)))


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    length=st.integers(1, 140),
    keys=st.integers(1, 2),
    groups=st.integers(1, 2),
    ratio=st.integers(1, 2),
    width=st.integers(1, 20),
    size=st.integers(1, 20),
    window=st.none() | st.integers(1, 150),
    segmented=st.booleans(),
    padded=st.booleans(),
)
def test_any_shape(length, keys, groups, ratio, width, size, window, segmented, padded):
    options = {
        "segment_ids_BL": documents(1, length) if segmented else None,
        "mask_BL": padding(1, length) if padded else None,
    }
    operands = make(1, length, 2 * ratio, keys, groups, width, size)
    assert_close(relative_errors(run(window=window, **options), operands))
