"""The convolution in C++ against the one tap by tap in float64: values, gradients, layouts, torch.compile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import causal_conv1d, describe, dispatch
from xarch.kernels.causal_conv1d import cpp
from xarch.kernels.dispatch import select
from xarch.kernels.native import BuildError, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason="needs a C++ compiler")

Operands = tuple[Tensor, ...]


def make(batch: int, length: int, channels: int, taps: int, seed: int = 0) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, channels), (channels, taps), (channels,), (batch, channels, taps - 1)]
    x, weight, bias, state = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x, weight, bias, state


def documents(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.05).long().cumsum(1) % 2


def gradients(
    operands: Operands,
    backend: str,
    dtype: torch.dtype,
    segments: Tensor | None = None,
    bias: bool = True,
    state: bool = True,
) -> list[Tensor]:
    """y, final state and the gradients of the operands that take part, for a fixed upstream gradient."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in operands]
    outputs = causal_conv1d(
        leaves[0],
        leaves[1],
        leaves[2] if bias else None,
        initial_state_BCJ=leaves[3] if state else None,
        segment_ids_BL=segments,
        return_final_state=True,
        backend=backend,
    )
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in outputs]
    used = leaves[:2] + leaves[2:3] * bias + leaves[3:] * state
    found = torch.autograd.grad(outputs, used, upstream, allow_unused=True, materialize_grads=True)
    return [*outputs, *found]


def assert_close(got: list[Tensor], want: list[Tensor], limit: float = 1e-6) -> None:
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert torch.isfinite(g).all()
        assert float((g.detach().double() - w.detach()).norm() / w.detach().norm().clamp_min(1.0)) <= limit


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 11, 255, 256, 257, 600])
@pytest.mark.parametrize(("channels", "taps"), [(16, 4), (37, 3), (5, 2), (40, 1), (19, 6)])
def test_values_and_gradients(channels, taps, length, segmented):
    operands = make(2, length, channels, taps)
    segments = documents(2, length) if segmented else None
    got = gradients(operands, "cpp", torch.float32, segments)
    assert_close(got, gradients(operands, "naive", torch.float64, segments))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 60),
    channels=st.integers(1, 70),
    taps=st.integers(1, 7),
    segmented=st.booleans(),
    bias=st.booleans(),
    state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, length, channels, taps, segmented, bias, state, seed):
    operands = make(batch, length, channels, taps, seed)
    segments = documents(batch, length, seed) if segmented else None
    got = gradients(operands, "cpp", torch.float32, segments, bias, state)
    assert_close(got, gradients(operands, "naive", torch.float64, segments, bias, state))


def test_many_slabs_of_tokens(monkeypatch):
    monkeypatch.setattr(cpp, "_SLAB", 16)
    monkeypatch.setattr(cpp, "_MOST_SLABS", 10)
    operands = make(3, 100, 20, 4)
    assert_close(gradients(operands, "cpp", torch.float32), gradients(operands, "naive", torch.float64))


def test_a_nan_of_another_document_stays_there():
    x, weight, bias, _ = (t.float() for t in make(1, 40, 18, 4))
    segments = (torch.arange(40) >= 20).long()[None]
    x[0, 19] = torch.nan
    y = causal_conv1d(x, weight, bias, segment_ids_BL=segments, backend="cpp")
    assert y[0, 19].isnan().all()
    assert torch.isfinite(y[0, 20:]).all()
    assert torch.isfinite(y[0, :19]).all()


def test_strides_do_not_matter():
    operands = tuple(t.float() for t in make(2, 70, 19, 4))
    strided = tuple(t.transpose(0, -1).contiguous().transpose(0, -1) for t in operands)
    wide = (torch.cat([operands[0], operands[0]], -1)[:, :, 19:], *operands[1:])
    want = gradients(operands, "cpp", torch.float32)
    for other in (strided, wide):
        assert not other[0].is_contiguous()
        got = gradients(other, "cpp", torch.float32)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_inside(dtype):
    rounded = tuple(t.to(dtype).double() for t in make(2, 70, 20, 4))
    got = gradients(rounded, "cpp", dtype)
    assert {t.dtype for t in got} == {dtype}
    assert_close(got, gradients(rounded, "naive", torch.float64), 1e-2)


def test_threads_do_not_change_a_bit():
    operands = make(2, 700, 20, 4)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients(operands, "cpp", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compilers_of_models_see_through():
    operands = make(2, 70, 20, 4)
    segments = documents(2, 70)

    def loss(*t: Tensor) -> Tensor:
        y, state = causal_conv1d(
            *t[:3], initial_state_BCJ=t[3], segment_ids_BL=segments, return_final_state=True, backend="cpp"
        )
        return y.square().sum() + state.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (loss, compiled):
        leaves = [t.float().requires_grad_() for t in operands]
        results.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_operators_keep_their_contract():
    x, weight, bias, state = (t.float().requires_grad_() for t in make(1, 20, 5, 4))
    run = torch.zeros(1, 20, dtype=torch.int64)
    torch.library.opcheck(cpp.conv_cpp_forward, (x, weight, bias, state, run))
    torch.library.opcheck(cpp.conv_cpp_forward, (x, weight, None, None, None))
    backward = (torch.randn(1, 20, 5), x.detach(), weight.detach(), state.detach(), run)
    torch.library.opcheck(cpp.conv_cpp_backward, backward, test_utils=("test_schema", "test_faketensor"))


def test_it_is_the_first_choice_but_never_exported():
    assert select("causal_conv1d", "cpu", torch.float32).name == "cpp"
    assert select("causal_conv1d", "cpu", torch.float64).name == "torch"

    class Conv(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return causal_conv1d(x, weight)

    program = torch.export.export(Conv(), tuple(t.float() for t in make(1, 20, 5, 4)[:2]))
    assert not any("xarch" in str(node.target) for node in program.graph.nodes)


def test_without_a_compiler_the_plain_form_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused = next(c for c in describe() if c.op == "causal_conv1d").refused
    assert "no-such-compiler" in refused["cpp"]
    assert select("causal_conv1d", "cpu", torch.float32).name == "torch"


def test_a_library_that_does_not_build_is_left_out_with_one_line(monkeypatch, caplog):
    def broken() -> None:
        raise BuildError("kernel causal_conv1d: g++ failed: error: no such thing", "try again")

    monkeypatch.setattr(dispatch, "_VERDICTS", {})
    monkeypatch.setattr(cpp, "_library", broken)
    for _ in range(3):
        assert select("causal_conv1d", "cpu", torch.float32).name == "torch"
    assert [r.getMessage() for r in caplog.records] == [
        "causal_conv1d: backend cpp is not used on cpu: kernel causal_conv1d: g++ failed: error: no such thing"
    ]
    with pytest.raises(UsageError, match="cannot run this call"):
        select("causal_conv1d", "cpu", torch.float32, backend="cpp")
