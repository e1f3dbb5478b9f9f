"""The selective scan in Triton kernels against the recurrence."""

from __future__ import annotations

import pytest
import torch
from agreement import relative_errors
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.kernels import gpu
from xarch.kernels.selective_scan import selective_scan


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen tokens a block, so that short sequences have several: the interpreter scans element by element."""
    from xarch.kernels.selective_scan import triton_launch

    monkeypatch.setattr(triton_launch, "_TILE", 16)


def make(batch, channels, length, size, groups=None, seed=0) -> list[Tensor]:
    """x, dt, A, B, C, D, z, dt_bias and the initial state."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (batch, size, length) if groups is None else (batch, groups, size, length)
    scan = [randn(batch, channels, length), randn(batch, channels, length), -4 * randn(channels, size).abs()]
    rest = [randn(channels), randn(batch, channels, length), randn(channels), randn(batch, channels, size)]
    return [*scan, randn(*shape), randn(*shape), *rest]


def documents(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1) % 2


def run(segments=None, softplus=True):
    def call(backend, x, dt, A, B, C, D=None, z=None, bias=None, state=None):
        return selective_scan(
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias_D=bias,
            dt_softplus=softplus,
            initial_state_BDN=state,
            segment_ids_BL=segments,
            return_final_state=True,
            backend=backend,
        )

    return call


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 15, 37])
def test_lengths(length, segmented):
    segments = documents(1, length) if segmented else None
    assert max(relative_errors(run(segments), make(1, 2, length, 2))) <= 1e-5


@pytest.mark.parametrize(("groups", "programs"), [(1, 1), (2, 1), (2, 10**9), (4, 1)])
def test_channels_of_a_group_in_one_program_or_in_several(groups, programs, monkeypatch):
    monkeypatch.setattr(gpu, "_PROGRAMS", programs)
    assert max(relative_errors(run(), make(1, 4, 20, 2, groups))) <= 1e-5


def test_without_what_can_be_left_out():
    operands = make(1, 2, 20, 3)[:5]
    operands[1] = operands[1].abs()
    assert max(relative_errors(run(softplus=False), operands)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_float32_decay(dtype):
    wide = torch.float32
    dtypes = [dtype, dtype, wide, dtype, dtype, wide, dtype, wide, wide]
    assert max(relative_errors(run(), make(1, 2, 20, 2), dtypes=dtypes)) <= 1e-2


@pytest.mark.parametrize("dt", [-20.0, 20.0, 1000.0])
def test_no_step_is_too_small_or_too_large(dt):
    """softplus(-20) is 2e-9, which 1 + e^-20 in float32 does not know."""
    operands = make(1, 2, 20, 2)
    operands[1][:, :, ::2] = dt
    operands[7].zero_()
    assert max(relative_errors(run(), operands)) <= 1e-5
    operands[1][:] = dt
    x, *rest = operands[:5]
    got, want = (run()(name, x, *rest)[0].double() for name in ("triton", "naive"))
    assert (got - want).norm() <= 1e-5 * want.norm()


def test_strides_do_not_matter():
    operands = make(1, 4, 20, 3, 2)
    want = run()("triton", *operands)
    together = torch.cat([operands[0], operands[1], operands[6]], 1)
    x, dt, z = together.split(4, 1)
    B = operands[3].transpose(2, 3).contiguous().transpose(2, 3)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    got = run()("triton", x, dt, operands[2], B, operands[4], operands[5], z, *operands[7:])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_only_the_state_is_used():
    def state_only(backend, *operands):
        return run()(backend, *operands)[1]

    assert max(relative_errors(state_only, make(1, 2, 20, 2))) <= 1e-5


@pytest.mark.slow
def test_the_operator_is_well_formed():
    x, dt, A, B, C, D, z, bias, state = (t.requires_grad_() for t in make(1, 2, 5, 2, 1))
    arguments = (x, dt, A, B, C, D, z, bias, state, None, True)
    torch.library.opcheck(torch.ops.xarch.selective_scan_triton_forward, arguments)


@pytest.mark.slow
def test_compiled_whole():
    compiled = torch.compile(run(), fullgraph=True, backend="aot_eager")

    def call(backend, *operands):
        return (compiled if backend == "triton" else run())(backend, *operands)

    assert max(relative_errors(call, make(1, 2, 5, 2, 1))) <= 1e-5


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 20),
    groups=st.none() | st.integers(1, 2),
    size=st.integers(1, 5),
    segmented=st.booleans(),
)
def test_any_shape(batch, length, groups, size, segmented):
    segments = documents(batch, length) if segmented else None
    assert max(relative_errors(run(segments), make(batch, 2, length, size, groups))) <= 1e-5
