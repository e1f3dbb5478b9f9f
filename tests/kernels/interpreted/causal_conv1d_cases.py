"""The causal convolution in Triton kernels against the sum over taps."""

from __future__ import annotations

import pytest
import torch
from agreement import relative_errors
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.kernels import causal_conv1d


def make(batch, length, channels, taps, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, channels), (channels, taps), (channels,), (batch, channels, taps - 1)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def documents(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1) % 2


def run(segments=None):
    def call(backend, x, weight, bias=None, state=None):
        return causal_conv1d(
            x,
            weight,
            bias,
            initial_state_BCJ=state,
            segment_ids_BL=segments,
            return_final_state=True,
            backend=backend,
        )

    return call


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("operands", [2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 130])
def test_lengths(length, operands, segmented):
    segments = documents(2, length) if segmented else None
    assert max(relative_errors(run(segments), make(2, length, 5, 4)[:operands])) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    assert max(relative_errors(run(), make(1, 70, 5, 4), dtypes=dtype)) <= 1e-2


def test_strides_do_not_matter():
    x, weight, bias, state = make(2, 37, 6, 4)
    want = run()("triton", x, weight, bias, state)
    wide = torch.cat([x, x], -1)
    twisted = weight.t().contiguous().t()
    for view in (wide[..., 6:], x.transpose(1, 2).contiguous().transpose(1, 2)):
        for a, b in zip(run()("triton", view, twisted, bias, state), want, strict=True):
            assert torch.equal(a, b)
    leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(2, 6, 37).transpose(1, 2)
    run()("triton", leaf, weight)[0].backward(upstream)
    run()("naive", twin, weight)[0].backward(upstream)
    torch.testing.assert_close(leaf.grad, twin.grad)


@pytest.mark.slow
def test_the_operator_is_well_formed():
    x, weight, bias, _ = (t.requires_grad_() for t in make(2, 20, 5, 4))
    torch.library.opcheck(torch.ops.xarch.causal_conv1d_triton_forward, (x, weight, bias, None, 0))


@pytest.mark.slow
def test_compiled_whole():
    compiled = torch.compile(run(), fullgraph=True, backend="aot_eager")

    def call(backend, *operands):
        return (compiled if backend == "triton" else run())(backend, *operands)

    assert max(relative_errors(call, make(1, 20, 3, 4))) <= 1e-6


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 140),
    channels=st.integers(1, 130),
    taps=st.integers(1, 6),
    segmented=st.booleans(),
)
def test_any_shape(batch, length, channels, taps, segmented):
    segments = documents(batch, length) if segmented else None
    assert max(relative_errors(run(segments), make(batch, length, channels, taps))) <= 1e-5
