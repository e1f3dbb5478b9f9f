"""The selective scan: every form against the recurrence in float64, values and all gradients."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import describe, selective_scan, selective_scan_step
from xarch.kernels.native import build, why_not
from xarch.kernels.selective_scan import cpp
from xarch.kernels.selective_scan.traced import scan_traced

FAST = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))]
TOLERANCE = {"torch": 1e-5, "cpp": 1e-5}
FULL = ("D", "z", "bias", "initial")


def operands(
    batch: int, channels: int, length: int, states: int, groups: int = 1, seed: int = 0, options: Any = FULL
) -> dict[str, Tensor]:
    """Leaves in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    every = {
        "x": randn(batch, channels, length),
        "dt": randn(batch, channels, length),
        "log_A": randn(channels, states),
        "B": randn(batch, groups, states, length),
        "C": randn(batch, groups, states, length),
        "D": randn(channels),
        "z": randn(batch, channels, length),
        "bias": randn(channels),
        "initial": randn(batch, channels, states),
    }
    return {name: t for name, t in every.items() if name in ("x", "dt", "log_A", "B", "C", *options)}


def run(leaves: dict[str, Tensor], backend: str | None, dtype: torch.dtype, **kwargs: Any) -> dict[str, Tensor]:
    """Results and gradients by name; the upstream gradients are waves."""
    now = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
    y, last = selective_scan(
        now["x"],
        now["dt"],
        -now["log_A"].exp(),
        now["B"],
        now["C"],
        now.get("D"),
        now.get("z"),
        dt_bias_D=now.get("bias"),
        dt_softplus=True,
        initial_state_BDN=now.get("initial"),
        return_final_state=True,
        backend=backend,
        **kwargs,
    )
    waves = [torch.sin(torch.arange(t.numel(), dtype=torch.float64) * 1.3).view(t.shape).to(t.dtype) for t in (y, last)]
    # Without tokens y hangs on nothing.
    hung = [(t, wave) for t, wave in zip((y, last), waves, strict=True) if t.requires_grad]
    found = torch.autograd.grad([t for t, _ in hung], list(now.values()), [w for _, w in hung], allow_unused=True)
    gradients = {name: torch.zeros_like(now[name]) if g is None else g for name, g in zip(now, found, strict=True)}
    return {"y": y, "last": last, **{f"d{name}": g for name, g in gradients.items()}}


def norm_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    got, want = got.detach().double(), want.detach()
    return float((got - want).norm() / want.norm().clamp_min(1e-6))


def compare(leaves: dict[str, Tensor], backend: str, tolerance: float | None = None, **kwargs: Any) -> None:
    want = run(leaves, "naive", torch.float64, **kwargs)
    got = run(leaves, backend, torch.float32, **kwargs)
    errors = {name: norm_error(got[name], want[name]) for name in want}
    assert max(errors.values()) < (tolerance or TOLERANCE[backend]), errors


def by_hand(leaves: dict[str, Tensor]) -> Tensor:
    """y in closed form: every token adds to every later one."""
    dt = torch.nn.functional.softplus(leaves["dt"])
    total = dt.cumsum(-1)
    A = -leaves["log_A"].exp()
    y = torch.zeros_like(dt)
    for t in range(dt.shape[-1]):
        for s in range(t + 1):
            decay = torch.exp(A * (total[..., t] - total[..., s])[..., None])
            weight = (decay * leaves["B"][:, 0, None, :, s] * leaves["C"][:, 0, None, :, t]).sum(-1)
            y[..., t] += weight * dt[..., s] * leaves["x"][..., s]
    return y


def test_the_truth_is_the_closed_form():
    leaves = operands(2, 3, 7, 4, options=())
    torch.testing.assert_close(run(leaves, "naive", torch.float64)["y"], by_hand(leaves))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [0, 1, 2, 15, 64, 65, 333])
def test_any_number_of_tokens(backend, length):
    compare(operands(2, 19, length, 16), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("states", [1, 3, 8, 16, 21, 64])
def test_any_number_of_states(backend, states):
    compare(operands(1, 33, 70, states), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups(backend, groups):
    compare(operands(2, 40, 67, 16, groups), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [(), ("D",), ("z",), ("bias",), ("initial",), ("D", "z")])
def test_optional_operands(backend, options):
    compare(operands(2, 17, 66, 16, options=options), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [(), FULL])
def test_packed_documents(backend, options):
    lengths = torch.tensor([5, 1, 58, 1, 70, 15])
    ids = torch.repeat_interleave(torch.tensor([3, 4, 3, 5, 6, 0]), lengths)
    compare(operands(2, 17, 150, 16, options=options), backend, segment_ids_BL=torch.stack([ids, ids.flip(0)]))


@pytest.mark.parametrize("backend", ["naive", *FAST])
def test_documents_packed_are_documents_alone(backend):
    leaves = {name: t.float() for name, t in operands(1, 16, 100, 16, options=("D", "z")).items()}
    A = -leaves.pop("log_A").exp()
    skip = leaves.pop("D")
    ids = (torch.arange(100) >= 37).long()[None]

    def call(part: slice, **kwargs: Any) -> Tensor:
        x, dt, B, C, z = (t[..., part] for t in leaves.values())
        y = selective_scan(x, dt.abs(), A, B, C, skip, z, backend=backend, **kwargs)
        assert isinstance(y, Tensor)
        return y

    alone = torch.cat([call(slice(0, 37)), call(slice(37, 100))], -1)
    torch.testing.assert_close(call(slice(0, 100), segment_ids_BL=ids), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_a_state_carries_on_where_it_was_left(backend):
    leaves = {name: t.float() for name, t in operands(2, 20, 131, 16, options=()).items()}
    x, dt, A, B, C = leaves["x"], leaves["dt"].abs(), -leaves["log_A"].exp(), leaves["B"], leaves["C"]
    whole, last = selective_scan(x, dt, A, B, C, return_final_state=True, backend=backend)
    state, parts = None, []
    for part in (slice(0, 50), slice(50, 51), slice(51, 131)):
        y, state = selective_scan(
            x[..., part], dt[..., part], A, B[..., part], C[..., part],
            initial_state_BDN=state, return_final_state=True, backend=backend,
        )  # fmt: skip
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_any_strides(backend):
    leaves = operands(2, 24, 70, 16)
    want = run(leaves, backend, torch.float32)

    def channels_last(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    def gaps(t: Tensor) -> Tensor:
        return torch.stack([t, t], -1)[..., 0]

    for reshape in (channels_last, gaps):
        moved = {n: reshape(t.float()) if n in ("x", "dt", "z") else t for n, t in leaves.items()}
        assert not moved["x"].is_contiguous()
        got = run(moved, backend, torch.float32)
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_inside(backend, dtype):
    leaves = {name: t.to(dtype).double() for name, t in operands(2, 17, 66, 16).items()}
    want, got = run(leaves, "naive", torch.float64), run(leaves, backend, dtype)
    assert got["y"].dtype == dtype
    assert got["last"].dtype == torch.float32
    # -A itself is rounded to half precision in the leaves' own arithmetic.
    assert max(norm_error(got[name].double(), want[name]) for name in want) < (
        3e-2 if dtype == torch.bfloat16 else 4e-3
    )


@pytest.mark.parametrize("backend", FAST)
def test_strong_and_weak_decays(backend, error):
    x = torch.ones(1, 16, 300, dtype=torch.float64)
    A = -torch.logspace(-6, 6, 16, dtype=torch.float64).expand(16, -1)
    dt = torch.logspace(-3, 3, 16, dtype=torch.float64)[None, :, None].expand(1, 16, 300)
    B = torch.ones(1, 16, 300, dtype=torch.float64)
    want = selective_scan(x, dt, A, B, B, backend="naive")
    got = selective_scan(x.float(), dt.float(), A.float(), B.float(), B.float(), backend=backend)
    assert error(got, want) < 1e-5


def test_gradients_of_the_plain_form_in_float64():
    leaves = [t.requires_grad_() for t in operands(2, 4, 21, 3, groups=2).values()]
    ids = (torch.arange(21) // 9).expand(2, -1)

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, h: Tensor):
        return selective_scan(
            x, dt, -A.exp(), B, C, D, z, dt_bias_D=bias, dt_softplus=True, initial_state_BDN=h,
            segment_ids_BL=ids, return_final_state=True, backend="torch",
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", FAST)
def test_only_one_result_is_used(backend):
    leaves = {name: t.float().requires_grad_() for name, t in operands(1, 16, 40, 16).items()}
    for use in (0, 1):
        got = []
        for name in ("naive", backend):
            result = selective_scan(
                leaves["x"], leaves["dt"].abs(), -leaves["log_A"].exp(), leaves["B"], leaves["C"],
                initial_state_BDN=leaves["initial"], return_final_state=True, backend=name,
            )[use]  # fmt: skip
            got.append(torch.autograd.grad(result.square().sum(), [leaves["x"], leaves["initial"], leaves["B"]]))
        for one, other in zip(*got, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 40),
    groups=st.integers(1, 3),
    length=st.integers(1, 140),
    states=st.integers(1, 24),
    options=st.sets(st.sampled_from(FULL)),
    cuts=st.integers(1, 60),
)
@pytest.mark.parametrize("backend", FAST)
def test_random_shapes(backend, batch, per_group, groups, length, states, options, cuts):
    ids = (torch.arange(length) // cuts).expand(batch, -1)
    compare(operands(batch, per_group * groups, length, states, groups, options=options), backend, segment_ids_BL=ids)


def test_one_token_at_a_time():
    leaves = {name: t.float() for name, t in operands(2, 8, 5, 4, groups=2, options=("D", "z")).items()}
    x, dt, B, C, z = (leaves[n] for n in ("x", "dt", "B", "C", "z"))
    A, state = -leaves["log_A"].exp(), torch.zeros(2, 8, 4)
    want = selective_scan(x, dt, A, B, C, leaves["D"], z, dt_softplus=True, backend="torch")
    for t in range(5):
        y, state = selective_scan_step(
            x[..., t], dt[..., t], A, B[..., t], C[..., t], leaves["D"], z[..., t], state, dt_softplus=True
        )
        torch.testing.assert_close(y, want[..., t])


def test_the_form_that_exporters_record():
    leaves = operands(2, 4, 37, 3, groups=2, options=("initial",))
    keep = (torch.arange(37) % 11 != 0).double().expand(2, -1).clone()
    keep[:, 0] = 1
    args = (leaves["x"], leaves["dt"].abs(), -leaves["log_A"].exp(), leaves["B"], leaves["C"])
    y, last = scan_traced(*args, leaves["initial"], keep)
    ids = (1 - keep).cumsum(1)
    want = selective_scan(
        *args, initial_state_BDN=leaves["initial"], segment_ids_BL=ids, return_final_state=True, backend="naive"
    )
    torch.testing.assert_close((y, last), want)


class Scan(torch.nn.Module):
    def forward(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y = selective_scan(x, dt, A, B, C, dt_softplus=True)
        assert isinstance(y, Tensor)
        return y


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    leaves = operands(1, 8, 20, 4, options=())
    return tuple(t.to(dtype) for t in (leaves["x"], leaves["dt"], -leaves["log_A"].exp(), leaves["B"], leaves["C"]))


def test_an_export_records_plain_operators():
    program = torch.export.export(Scan(), arguments())
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names
    assert not any("xarch" in name for name in names)
    torch.testing.assert_close(program.module()(*arguments()), Scan()(*arguments()), rtol=1e-5, atol=1e-5)


cpp_only = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@cpp_only
def test_cpp_runs_by_default():
    choice = next(c for c in describe() if c.op == "selective_scan")
    assert choice.backend == "cpp"


@cpp_only
def test_the_operators_keep_their_contract():
    leaves = {n: t.float().requires_grad_() for n, t in operands(2, 18, 70, 5, groups=2).items()}
    x, dt, A, B, C, D, z, bias, initial = leaves.values()
    reset = (torch.arange(70) == 33).to(torch.uint8).expand(2, -1).contiguous()
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    for args in (
        (x, dt, A, B, C, D, z, bias, initial, reset, True, True),
        (x, dt, A, B, C, None, None, None, None, None, False, True),
    ):
        torch.library.opcheck(cpp.scan_cpp_forward, args, test_utils=checks)
        plain = [t.detach() if isinstance(t, Tensor) else t for t in args]
        kept = cpp.scan_cpp_forward(*plain)[2]
        backward = (x.detach().cos(), initial.detach(), *plain[:8], plain[9], kept, plain[10])
        torch.library.opcheck(cpp.scan_cpp_backward, backward, test_utils=checks)


@cpp_only
def test_torch_compile_sees_one_graph():
    one, two = (tuple(t.requires_grad_() for t in arguments()) for _ in range(2))
    want, got = Scan()(*one), torch.compile(Scan(), fullgraph=True, backend="aot_eager")(*two)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), two), torch.autograd.grad(want.sum(), one), strict=True):
        torch.testing.assert_close(a, b)


@cpp_only
def test_the_number_of_threads_changes_no_bit():
    leaves = operands(2, 300, 130, 16)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(run(leaves, "cpp", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other if name != "dlog_A")
        torch.testing.assert_close(found[0]["dlog_A"], other["dlog_A"])


@cpp_only
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="options of x86 compilers")
@pytest.mark.parametrize("narrower", ["-mno-avx512f", "-mno-avx"])
def test_narrower_processors(monkeypatch, narrower):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, narrower))
    monkeypatch.setattr(cpp, "_library", cache(cpp._library.__wrapped__))
    compare(operands(2, 37, 133, 21), "cpp")
    assert cpp._library().selective_scan_lanes() == 8


@cpp_only
def test_infinite_and_missing_values_come_through():
    x, dt, A, B, C = arguments()
    x = x.clone()
    x[0, 0, 7], x[0, 1, 7] = torch.inf, torch.nan
    # Positive weights: with both signs an infinite state would give NaN.
    y = selective_scan(x, dt, A, B.abs(), C.abs(), dt_softplus=True, backend="cpp")
    assert torch.isfinite(y[:, 2:]).all()
    assert torch.isfinite(y[:, :2, :7]).all()
    assert torch.isposinf(y[0, 0, 7:]).all()
    assert torch.isnan(y[0, 1, 7:]).all()


def test_without_a_compiler_the_plain_form_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    choice = next(c for c in describe() if c.op == "selective_scan")
    assert choice.backend == "torch"
    assert choice.refused["cpp"] == "no C++ compiler is found (g++ or clang++)"
    assert Scan()(*arguments()).shape == (1, 8, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.zeros(1, 8, 19)}, r"dt has shape \[1, 8, 19\], want \[1, 8, 20\]"),
        ({"x": torch.zeros(8, 20)}, r"want x \[B, D, L\]"),
        ({"B": torch.zeros(1, 3, 4, 20), "C": torch.zeros(1, 3, 4, 20)}, "3 B/C groups do not divide 8 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    given_ = dict(zip(("x", "dt", "A", "B", "C"), arguments(), strict=True))
    with pytest.raises(UsageError, match=message):
        selective_scan(*{**given_, **change}.values())
