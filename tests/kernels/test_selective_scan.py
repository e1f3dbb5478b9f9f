"""The selective scan: every form against the recurrence in float64, values and all gradients."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close, compare, documents, each, needs_compiler, results, slow, source, truth
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import gpu, selective_scan
from xarch.kernels.native import build, forget
from xarch.kernels.selective_scan.traced import scan_traced

FULL = ("D", "z", "bias", "initial")
PACKED = torch.repeat_interleave(torch.tensor([3, 4, 3, 5, 6, 0]), torch.tensor([5, 1, 58, 1, 70, 15]))


@dataclass(frozen=True)
class Scan:
    batch: int
    channels: int
    length: int
    states: int
    groups: int | None = 1
    """None: B and C without a dimension for groups."""
    options: tuple[str, ...] = FULL
    ids: str = ""
    """Documents: random, packed or a number of tokens each."""
    dt: float | None = None
    """Of every second token, without a bias."""
    softplus: bool = True
    final: bool = True
    seed: int = 0

    def operands(self) -> list[Tensor | None]:
        """x, dt, log of -A, B, C, D, z, bias and the initial state."""
        draw, shape = source(self.seed), (self.batch, self.channels, self.length)
        x, dt, log_A = draw(*shape), draw(*shape), draw(self.channels, self.states)
        groups = () if self.groups is None else (self.groups,)
        B, C = (draw(self.batch, *groups, self.states, self.length) for _ in range(2))
        D, z, bias = draw(self.channels), draw(*shape), draw(self.channels)
        every = {"D": D, "z": z, "bias": bias, "initial": draw(self.batch, self.channels, self.states)}
        if self.dt is not None:
            dt[:, :, ::2] = self.dt
            bias.zero_()
        return [
            x,
            dt if self.softplus else dt.abs(),
            log_A,
            B,
            C,
            *(t if n in self.options else None for n, t in every.items()),
        ]

    def segments(self) -> Tensor | None:
        if self.ids == "packed":
            return torch.stack([PACKED, PACKED.flip(0)])
        if self.ids == "random":
            return documents(self.batch, self.length, often=0.2)
        return (torch.arange(self.length) // int(self.ids)).expand(self.batch, -1) if self.ids else None

    def call(self, backend: str | None, *t: Tensor | None) -> Any:
        x, dt, log_A, *rest = t
        return selective_scan(
            x, dt, -log_A.exp(), *rest[:4], dt_bias_D=rest[4], dt_softplus=self.softplus, initial_state_BDN=rest[5],
            segment_ids_BL=self.segments(), return_final_state=self.final, backend=backend,
        )  # fmt: skip


def both(*cases: Scan) -> pytest.MarkDecorator:
    return each("case", torch=cases, cpp=cases)


def test_the_truth_is_the_closed_form():
    """Every token adds to every later one."""
    case = Scan(2, 3, 7, 4, options=())
    x, dt, log_A, B, C, *_ = case.operands()
    dt, A, want = F.softplus(dt), -log_A.exp(), torch.zeros_like(x)
    total = dt.cumsum(-1)
    for t in range(7):
        for s in range(t + 1):
            decay = torch.exp(A * (total[..., t] - total[..., s])[..., None])
            weight = (decay * B[:, 0, None, :, s] * C[:, 0, None, :, t]).sum(-1)
            want[..., t] += weight * dt[..., s] * x[..., s]
    torch.testing.assert_close(truth(case)[0][0], want)


@both(
    *(Scan(2, 19, length, 16) for length in (0, 1, 2, 15, 64, 65, 333)),
    *(Scan(1, 33, 70, states) for states in (1, 3, 8, 16, 21, 64)),
    *(Scan(2, 40, 67, 16, groups) for groups in (1, 2, 5)),
    *(Scan(2, 17, 66, 16, options=o) for o in ((), ("D",), ("z",), ("bias",), ("initial",), ("D", "z"))),
    *(Scan(2, 17, 150, 16, options=o, ids="packed") for o in ((), FULL)),
)
def test_values_and_gradients(backend, case):
    compare(case, backend, 1e-5)


@each(
    "case",
    triton=[
        *(Scan(1, 2, length, 2, None, ids="random" if length != 15 else "") for length in (1, 2, 15, 37)),
        Scan(1, 2, 20, 3, None, options=(), softplus=False),
        Scan(1, 2, 20, 2, None, dt=-20.0),
        Scan(1, 2, 20, 2, None, dt=1000.0),
    ],
)
def test_values_and_gradients_in_the_interpreter(backend, case):
    """softplus(-20) is 2e-9, which 1 + e^-20 in float32 does not know."""
    compare(case, backend, 1e-5)


@each("dt", triton=[-20.0, 20.0, 1000.0])
def test_no_step_is_too_small_or_too_large(backend, dt):
    operands = [t.float() for t in Scan(1, 2, 20, 2, None).operands()[:5]]
    operands[1][:] = dt
    call = Scan(1, 2, 20, 2).call
    got, want = (call(name, *operands, None, None, None, None)[0] for name in (backend, "naive"))
    assert_close([got], [want], 1e-5, 1e-12)


@each("groups, programs", triton=[(2, 1), *(pytest.param(*row, marks=slow) for row in ((1, 1), (2, 10**9), (4, 1)))])
def test_channels_of_a_group_in_one_program_or_in_several(backend, groups, programs, monkeypatch):
    monkeypatch.setattr(gpu.SIZES, "programs", programs)
    compare(Scan(1, 4, 17, 2, groups), backend, 1e-5)


@each(torch=[()], cpp=[()])
def test_strong_and_weak_decays(backend, error):
    x = torch.ones(1, 16, 300, dtype=torch.float64)
    A = -torch.logspace(-6, 6, 16, dtype=torch.float64).expand(16, -1)
    dt = torch.logspace(-3, 3, 16, dtype=torch.float64)[None, :, None].expand(1, 16, 300)
    want = selective_scan(x, dt, A, x, x, backend="naive")
    got = selective_scan(x.float(), dt.float(), A.float(), x.float(), x.float(), backend=backend)
    assert error(got, want) < 1e-5


def test_gradients_of_the_plain_form_in_float64():
    case = Scan(2, 4, 21, 3, groups=2, ids="9")
    leaves = [t.requires_grad_() for t in case.operands()]
    assert torch.autograd.gradcheck(lambda *t: case.call("torch", *t), leaves, fast_mode=True)


@settings(max_examples=12)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 40),
    groups=st.integers(1, 3),
    length=st.integers(1, 140),
    states=st.integers(1, 24),
    options=st.sets(st.sampled_from(FULL)),
    cuts=st.integers(1, 60),
)
@each(torch=[()], cpp=[()])
def test_any_shape(backend, batch, per_group, groups, length, states, options, cuts):
    options = tuple(sorted(options))
    compare(Scan(batch, per_group * groups, length, states, groups, options, str(cuts)), backend, 1e-5)


@settings(max_examples=5, phases=[Phase.generate])
@given(
    case=st.builds(
        Scan, st.integers(1, 2), st.just(2), st.integers(1, 20), st.integers(1, 5), st.none() | st.integers(1, 2),
        ids=st.sampled_from(["", "random"]),
    )
)  # fmt: skip
@each(triton=[pytest.param(marks=slow)])
def test_any_shape_in_the_interpreter(backend, case):
    compare(case, backend, 1e-5)


def test_the_form_that_exporters_record():
    case = Scan(2, 4, 37, 3, groups=2, options=("initial",), softplus=False)
    x, dt, log_A, B, C, *_, state = case.operands()
    keep = (torch.arange(37) % 11 != 0).double().expand(2, -1).clone()
    keep[:, 0] = 1
    args = (x, dt, -log_A.exp(), B, C)
    ids = (1 - keep).cumsum(1)
    want = selective_scan(*args, initial_state_BDN=state, segment_ids_BL=ids, return_final_state=True, backend="naive")
    torch.testing.assert_close(scan_traced(*args, state, keep), want)


@needs_compiler
def test_the_operators_take_calls_without_options():
    x, dt, log_A, B, C, *_ = (t.float().requires_grad_() for t in Scan(2, 18, 70, 5, groups=2).operands())
    args = (x, dt, log_A, B, C, None, None, None, None, None, False, True)
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(torch.ops.xarch.selective_scan_cpp_forward, args, test_utils=checks)


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    case, before, found = Scan(2, 300, 130, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values, grads = results(case.call, "cpp", case.operands(), torch.float32)
            found.append(values + grads)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        # The exponential of A is PyTorch's.
        assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(found[0], other, strict=True)) if i != 4)
        torch.testing.assert_close(found[0][4], other[4])


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="options of x86 compilers")
@pytest.mark.parametrize("narrower", ["-mno-avx512f", pytest.param("-mno-avx", marks=slow)])
def test_narrower_processors(monkeypatch, narrower):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, narrower))
    forget()
    compare(Scan(2, 37, 133, 21), "cpp", 1e-5)
    source = build.HEADERS.parent / "selective_scan" / "kernel.cpp"
    assert build.library("selective_scan", [source]).selective_scan_lanes() == 8
    forget()


@needs_compiler
def test_infinite_and_missing_values_come_through():
    x, dt, log_A, B, C, *_ = (t.float() for t in Scan(1, 8, 20, 4).operands())
    x[0, 0, 7], x[0, 1, 7] = torch.inf, torch.nan
    # Positive weights: with both signs an infinite state would give NaN.
    y = selective_scan(x, dt, -log_A.exp(), B.abs(), C.abs(), dt_softplus=True, backend="cpp")
    assert torch.isfinite(y[:, 2:]).all()
    assert torch.isfinite(y[:, :2, :7]).all()
    assert torch.isposinf(y[0, 0, 7:]).all()
    assert torch.isnan(y[0, 1, 7:]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(1, 8, 19)}, r"dt has shape \[1, 8, 19\], want \[1, 8, 20\]"),
        ({0: torch.zeros(8, 20)}, r"want x \[B, D, L\]"),
        ({3: torch.zeros(1, 3, 4, 20), 4: torch.zeros(1, 3, 4, 20)}, "3 B/C groups do not divide 8 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    operands = Scan(1, 8, 20, 4).operands()[:5]
    with pytest.raises(UsageError, match=message):
        selective_scan(*(change.get(i, t) for i, t in enumerate(operands)))
