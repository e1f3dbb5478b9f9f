"""SSD in C++ against the recurrence in float64: values, gradients, layouts, torch.compile, no compiler."""

from __future__ import annotations

import ctypes
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import backends, describe, dispatch, ssd
from xarch.kernels.dispatch import select
from xarch.kernels.native import BuildError, why_not
from xarch.kernels.ssd import cpp

pytestmark = pytest.mark.skipif(why_not() is not None, reason="needs a C++ compiler")

LIMIT = 1e-5
Operands = tuple[Tensor, ...]


def make(batch: int, length: int, heads: int, groups: int, width: int, size: int, seed: int = 0) -> Operands:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_a = -torch.nn.functional.softplus(2 * randn(batch, length, heads))
    vectors = [randn(batch, length, groups, size) for _ in range(2)]
    return randn(batch, length, heads, width), log_a, *vectors, randn(heads), randn(batch, heads, width, size)


def documents(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.1).long().cumsum(1) % 2


def gradients(
    operands: Operands,
    backend: str,
    dtype: torch.dtype,
    segments: Tensor | None = None,
    chunk: int | None = None,
    skip: bool = True,
    initial: bool = True,
) -> list[Tensor]:
    """y, final state and the gradients of all operands that take part, for a fixed upstream gradient."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in operands]
    outputs = ssd(
        *leaves[:4],
        leaves[4] if skip else None,
        initial_state_BHPN=leaves[5] if initial else None,
        segment_ids_BL=segments,
        return_final_state=True,
        chunk_size=chunk,
        backend=backend,
    )
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in outputs]
    used = leaves[:4] + leaves[4:5] * skip + leaves[5:] * initial
    live = [(t, u) for t, u in zip(outputs, upstream, strict=True) if t.requires_grad]
    found = torch.autograd.grad(
        [t for t, _ in live], used, [u for _, u in live], allow_unused=True, materialize_grads=True
    )
    return [*outputs, *found]


def assert_close(got: list[Tensor], want: list[Tensor], limit: float = LIMIT) -> None:
    """Relative norms; a gradient that is next to nothing beside the others is measured by theirs.

    That of log_a is zero for a single token, but computed as the difference of two sums.
    """
    norms = [float(w.detach().norm()) for w in want]
    floor = max(0.01 * max(norms), 1e-6)
    for g, w, norm in zip(got, want, norms, strict=True):
        assert g.shape == w.shape
        assert torch.isfinite(g).all()
        assert float((g.detach().double() - w.detach()).norm()) <= limit * max(norm, floor)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 131, 300])
@pytest.mark.parametrize(("heads", "groups", "width", "size"), [(3, 3, 64, 64), (4, 1, 20, 33), (9, 1, 5, 3)])
def test_values_and_gradients(heads, groups, width, size, length, segmented):
    operands = make(2, length, heads, groups, width, size)
    segments = documents(2, length) if segmented else None
    got = gradients(operands, "cpp", torch.float32, segments)
    assert_close(got, gradients(operands, "naive", torch.float64, segments))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 90),
    groups=st.integers(1, 3),
    ratio=st.integers(1, 9),
    width=st.integers(1, 40),
    size=st.integers(1, 40),
    chunk=st.one_of(st.none(), st.integers(1, 100)),
    segmented=st.booleans(),
    skip=st.booleans(),
    initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, length, groups, ratio, width, size, chunk, segmented, skip, initial, seed):
    operands = make(batch, length, groups * ratio, groups, width, size, seed)
    segments = documents(batch, length, seed) if segmented else None
    got = gradients(operands, "cpp", torch.float32, segments, chunk, skip, initial)
    assert_close(got, gradients(operands, "naive", torch.float64, segments, None, skip, initial))


@pytest.mark.parametrize("log_a", [0.0, -1e-7, -5.0, -90.0, -1e30])
def test_no_decay_is_too_weak_or_too_strong(log_a):
    x, decay, *others = make(2, 100, 2, 2, 16, 16)
    decay[:, ::3] = log_a
    got = gradients((x, decay, *others), "cpp", torch.float32)
    assert_close(got, gradients((x, decay, *others), "naive", torch.float64))


def test_infinite_decay_and_nan_stay_what_they_are():
    x, log_a, B, C, D, _ = (t.float() for t in make(1, 70, 2, 2, 16, 16))
    log_a[:, 10] = -torch.inf
    assert torch.isfinite(ssd(x, log_a, B, C, D, backend="cpp")).all()
    x[0, 65, 0, 3] = torch.nan
    y = ssd(x, log_a, B, C, D, backend="cpp")
    assert y[0, 65:, 0, 3].isnan().all()
    assert torch.isfinite(y[:, :64]).all()
    assert torch.isfinite(y[:, :, 1]).all()


def test_strides_do_not_matter():
    operands = [t.float() for t in make(2, 70, 4, 2, 19, 18)]
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in operands]
    assert not strided[0].is_contiguous()
    for got, want in zip(
        gradients(tuple(strided), "cpp", torch.float32), gradients(tuple(operands), "cpp", torch.float32), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_inside(dtype):
    rounded = tuple(t.to(dtype).double() for t in make(2, 70, 4, 2, 16, 16))
    got = gradients(rounded, "cpp", dtype)
    assert got[0].dtype == got[2].dtype == dtype
    assert got[1].dtype == torch.float32
    assert_close(got, gradients(rounded, "naive", torch.float64), 1e-2)


def test_only_one_of_the_outputs_is_used():
    operands = make(2, 70, 2, 1, 5, 6)
    for which in (0, 1):
        results = []
        for backend, dtype in (("cpp", torch.float32), ("naive", torch.float64)):
            leaves = [t.to(dtype).detach().requires_grad_() for t in operands]
            out = ssd(*leaves[:5], initial_state_BHPN=leaves[5], return_final_state=True, backend=backend)[which]
            inputs = [t for i, t in enumerate(leaves) if which == 0 or i not in (3, 4)]
            results.append(torch.autograd.grad(out.square().sum(), inputs))
        assert_close(*map(list, results))


def test_threads_do_not_change_a_bit():
    operands = make(2, 150, 6, 2, 16, 16)
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


@pytest.mark.parametrize("dynamic", [False, True])
def test_compilers_of_models_see_through(dynamic):
    operands = make(2, 70, 4, 2, 16, 16)
    segments = documents(2, 70)

    def loss(*t: Tensor) -> Tensor:
        y, state = ssd(*t[:5], initial_state_BHPN=t[5], segment_ids_BL=segments, return_final_state=True)
        return y.square().sum() + state.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    results = []
    for function in (loss, compiled):
        leaves = [t.float().requires_grad_() for t in operands]
        results.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_operators_keep_their_contract():
    x, log_a, B, C, D, state = (t.float().requires_grad_() for t in make(1, 20, 2, 1, 5, 3))
    forward = (x, log_a, B, C, D, state, torch.zeros(1, 20, dtype=torch.int64), 8, True)
    torch.library.opcheck(cpp.ssd_cpp_forward, forward)
    with torch.no_grad():
        y, last, states = cpp.ssd_cpp_forward(*forward)
    backward = (y, last, *(t.detach() for t in (x, log_a, B, C, D)), None, states, 8)
    torch.library.opcheck(cpp.ssd_cpp_backward, backward, test_utils=("test_schema", "test_faketensor"))


def test_it_is_the_first_choice_but_never_exported():
    assert select("ssd", "cpu", torch.float32).name == "cpp"
    assert select("ssd", "cpu", torch.float64).name == "torch"
    operands = tuple(t.float() for t in make(1, 20, 2, 1, 4, 4)[:4])

    class Mixer(torch.nn.Module):
        def forward(self, *t: Tensor) -> Tensor:
            return ssd(*t)

    program = torch.export.export(Mixer(), operands)
    assert not any("xarch" in str(node.target) for node in program.graph.nodes)


def test_without_a_compiler_the_plain_form_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused = next(c for c in describe() if c.op == "ssd").refused
    assert "no-such-compiler" in refused["cpp"]
    assert select("ssd", "cpu", torch.float32).name == "torch"
    with pytest.raises(UsageError, match="no-such-compiler"):
        select("ssd", "cpu", torch.float32, backend="cpp")


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_a_library_that_fails_its_check_is_left_out_with_one_line(monkeypatch, caplog, fault):
    class Silent:
        @staticmethod
        def ssd_forward(_: ctypes.Structure) -> None:
            """Writes nothing."""

        ssd_backward = ssd_forward

    def broken() -> ctypes.CDLL:
        raise BuildError("kernel ssd: g++ failed: error: no such thing", "try again")

    monkeypatch.setattr(dispatch, "_VERDICTS", {})
    monkeypatch.setattr(cpp, "_library", Silent if fault == "wrong" else broken)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert select("ssd", "cpu", torch.float32).name == "torch"
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("ssd: backend cpp is not used on cpu: ")
    with pytest.raises(UsageError, match="cannot run this call"):
        select("ssd", "cpu", torch.float32, backend="cpp")


def test_it_is_registered_for_cpu_only():
    backend = next(b for b in backends("ssd") if b.name == "cpp")
    assert backend.refusal("cuda", torch.float32) == "runs on cpu, not on cuda"
