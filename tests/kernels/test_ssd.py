"""SSD: every form against the dense matrix and against the recurrence, values and gradients (spec checks A1, A2)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close, compare, documents, each, needs_compiler, results, slow, source, truth
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import backends, gpu, mixing_matrix, ssd, ssd_step

Q = 8
LENGTHS = [1, Q - 1, Q, Q + 1, 3 * Q + 7]
HEADS = [(1, 4, 4), (2, 3, 3), (2, 6, 2), (3, 4, 1)]
DTYPES = [torch.float64, torch.float32]


@dataclass(frozen=True)
class Ssd:
    batch: int
    length: int
    heads: int
    groups: int
    width: int = 5
    size: int = 3
    segmented: bool = False
    skip: bool = True
    initial: bool = True
    log_a: float | None = None
    """Of every third token."""
    seed: int = 0
    chunk: int | None = field(default=None, compare=False)

    def operands(self) -> list[Tensor | None]:
        draw, shape = source(self.seed), (self.batch, self.length)
        log_a = -F.softplus(2 * draw(*shape, self.heads))
        if self.log_a is not None:
            log_a[:, ::3] = self.log_a
        B, C = draw(*shape, self.groups, self.size), draw(*shape, self.groups, self.size)
        x, D = draw(*shape, self.heads, self.width), draw(self.heads)
        state = draw(self.batch, self.heads, self.width, self.size)
        return [x, log_a, B, C, D if self.skip else None, state if self.initial else None]

    def segments(self) -> Tensor | None:
        return documents(self.batch, self.length, self.seed) if self.segmented else None

    def call(self, backend: str | None, *t: Tensor | None) -> Any:
        return ssd(
            *t[:5], initial_state_BHPN=t[5], segment_ids_BL=self.segments(), return_final_state=True,
            chunk_size=self.chunk, backend=backend,
        )  # fmt: skip


def check(case: Ssd, backend: str, dtype: torch.dtype = torch.float32, limit: float = 1e-5) -> None:
    # The gradient of log a is zero for a single token, but computed as the difference of two sums.
    compare(case, backend, 1e-10 if dtype == torch.float64 else limit, dtype, beside=0.01)


def dense(case: Ssd) -> Tensor:
    x, log_a, B, C, D, _ = case.operands()
    return torch.einsum("bhts,bshp->bthp", mixing_matrix(C, B, log_a, D, segment_ids_BL=case.segments()), x)


@each(
    "case, dtype",
    torch=[
        (Ssd(*shape, segmented=segmented, chunk=Q), dtype)
        for shape in ((b, n, h, g) for b, h, g in HEADS for n in LENGTHS)
        for segmented in (False, True)
        for dtype in DTYPES
    ],
    cpp=[
        (Ssd(2, n, *shape, segmented=segmented), torch.float32)
        for shape in [(3, 3, 64, 64), (4, 1, 20, 33), (9, 1, 5, 3)]
        for n in (1, 2, 63, 64, 65, 131, 300)
        for segmented in (False, True)
    ],
    triton=[(Ssd(1, n, 2, 1, segmented=n != 31, chunk=32), torch.float32) for n in (1, 2, 31, 70)],
)
def test_values_and_gradients(backend, case, dtype):
    check(case, backend, dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("batch", "heads", "groups"), HEADS)
def test_recurrence_and_steps_are_the_dense_matrix(batch, heads, groups, length):
    case = Ssd(batch, length, heads, groups, initial=False)
    (y, last), _ = truth(case)
    want = dense(case)
    assert_close([y], [want], 1e-12)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x, log_a, B, C, D, _ = case.operands()
        state, ys = torch.zeros_like(last, dtype=torch.promote_types(dtype, torch.float32)), []
        for t in range(length):
            narrow = (x[:, t].to(dtype), log_a[:, t].to(state.dtype), B[:, t].to(dtype), C[:, t].to(dtype))
            y, state = ssd_step(*narrow, D.to(state.dtype), state)
            ys.append(y)
        assert_close([torch.stack(ys, 1), state], [want, last], limit)


@each("segmented", naive=[False, True], torch=[False, True])
def test_gradients_are_those_of_the_dense_matrix(backend, segmented):
    case = Ssd(2, 3 * Q + 7, 6, 3, initial=False, segmented=segmented, chunk=Q)
    operands = case.operands()[:5]

    def call(name: str | None, x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        if name is not None:
            return case.call(name, x, log_a, B, C, D, None)[0]
        return torch.einsum("bhts,bshp->bthp", mixing_matrix(C, B, log_a, D, segment_ids_BL=case.segments()), x)

    got, want = (results(call, name, operands, torch.float64) for name in (backend, None))
    assert_close(got[0] + got[1], want[0] + want[1], 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups):
    case = Ssd(2, 7, 2, groups, 2, 2, segmented=True, seed=5, chunk=3)
    leaves = [t.requires_grad_() for t in case.operands()]
    assert torch.autograd.gradcheck(lambda *t: case.call("torch", *t), leaves)


def shapes(**changes: Any) -> Any:
    arguments = {
        "batch": st.integers(1, 3),
        "length": st.integers(0, 60),
        "groups": st.integers(1, 3),
        "ratio": st.integers(1, 9),
        "width": st.integers(1, 24),
        "size": st.integers(1, 24),
        "chunk": st.none() | st.integers(1, 70),
        "segmented": st.booleans(),
        "skip": st.booleans(),
        "initial": st.booleans(),
        "seed": st.integers(0, 1000),
    }
    drawn = st.fixed_dictionaries(arguments | changes)
    return drawn.map(lambda d: Ssd(heads=d["groups"] * d.pop("ratio"), **d))


@each("dtype", torch=[torch.float64], cpp=[torch.float32])
@settings(max_examples=40)
@given(case=shapes())
def test_any_shape(backend, dtype, case):
    check(case, backend, dtype)


@each(triton=[pytest.param(marks=slow)])
@settings(max_examples=4, phases=[Phase.generate])
@given(case=shapes(length=st.integers(1, 70), ratio=st.integers(1, 3), chunk=st.sampled_from([16, 32, 64, 128])))
def test_any_shape_in_the_interpreter(backend, case):
    check(case, backend, limit=2e-5)


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 37), max_size=6), segmented=st.booleans(), backend=st.sampled_from(["naive", "torch"])
)
def test_pieces_with_carried_state_equal_the_whole(cuts, segmented, backend):
    case = Ssd(2, 37, 4, 2, chunk=Q)
    *operands, D, state = case.operands()
    # One document only, but declared: ids are compared inside a piece, the state carries across pieces.
    ids = torch.ones(2, 37, dtype=torch.long) if segmented else None
    ys = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), 37]):
        y, state = ssd(
            *(t[:, start:stop] for t in operands), D, initial_state_BHPN=state, return_final_state=True, chunk_size=Q,
            segment_ids_BL=None if ids is None else ids[:, start:stop], backend=backend,
        )  # fmt: skip
        ys.append(y)
    assert_close([torch.cat(ys, 1), state], truth(case)[0], 1e-12)


def test_decay_at_a_document_start_has_no_gradient():
    x, log_a, B, C, *_ = (t.requires_grad_() for t in Ssd(1, 20, 2, 2).operands())
    ssd(x, log_a, B, C, segment_ids_BL=torch.arange(20)[None] // 5, chunk_size=Q).square().sum().backward()
    assert log_a.grad[:, ::5].abs().max() <= 1e-12 * log_a.grad.abs().max()


@each(
    "log_a, dtype",
    torch=[(a, d) for a in (0.0, -1e-7, -5.0, -90.0, -1e4, -1e30) for d in DTYPES],
    cpp=[(a, torch.float32) for a in (0.0, -1e-7, -5.0, -90.0, -1e30)],
)
def test_no_decay_is_too_weak_or_too_strong(backend, log_a, dtype):
    small, large = Ssd(2, 50, 2, 2, log_a=log_a, chunk=Q), Ssd(2, 100, 2, 2, 16, 16, log_a=log_a)
    check(small if backend == "torch" else large, backend, dtype, 1e-4 if backend == "torch" else 1e-5)


@each(
    "log_a",
    triton=[pytest.param(0.0, marks=slow), pytest.param(-1e-7, marks=slow), pytest.param(-90.0, marks=slow), -1e4],
)
def test_no_decay_is_too_weak_or_too_strong_in_the_interpreter(backend, log_a):
    case = Ssd(1, 70, 2, 2, 4, 4, log_a=log_a, chunk=32)
    errors, plain = (
        [_error(a, b) for a, b in zip(_all(case, name), _truth(case), strict=True)] for name in (backend, "torch")
    )
    # The gradient of log a behind steps of -60: a prefix sum of a chunk reaches -1300, where float32 is 6e-5 apart, and
    # so far off is the difference of two of them. Plain PyTorch in float32 has the same sums and the same error (2.3e-5
    # against 1.6e-5 here); without prefix sums, in the recurrence, it is 8e-8.
    assert errors.pop(3) <= max(1e-5, plain.pop(3))
    assert max(errors) <= 1e-5


def _all(case: Ssd, backend: str) -> list[Tensor]:
    values, grads = results(case.call, backend, case.operands(), torch.float32)
    return values + grads


def _truth(case: Ssd) -> list[Tensor]:
    return truth(case)[0] + truth(case)[1]


def _error(got: Tensor, want: Tensor) -> float:
    assert torch.isfinite(got).all()
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-6))


@each(naive=[()], torch=[()], cpp=[()])
def test_a_weak_decay_still_decays_in_bfloat16(backend):
    """In bfloat16 a state with a = 0.999 would stay what it is for ever."""
    length, decay = 1000, 0.999
    x = torch.zeros(1, length, 1, 1, dtype=torch.bfloat16)
    x[:, 0] = 1.297
    ones = torch.ones(1, length, 1, 1, dtype=torch.bfloat16)
    log_a = torch.full((1, length, 1), decay).log()
    y, last = ssd(x, log_a, ones, ones, return_final_state=True, backend=backend)
    wanted = float(x[0, 0]) * decay ** (length - 1)
    assert abs(float(last) - wanted) < 1e-4 * wanted
    assert abs(float(y[0, -1]) - wanted) < 4e-3 * wanted


@each(torch=[()], cpp=[()])
def test_infinite_decay_and_nan_stay_what_they_are(backend):
    x, log_a, B, C, D, _ = (t.float() for t in Ssd(1, 70, 2, 2, 16, 16).operands())
    log_a[:, 10] = -torch.inf
    assert torch.isfinite(ssd(x, log_a, B, C, D, backend=backend)).all()
    x[0, 65, 0, 3] = torch.nan
    y = ssd(x, log_a, B, C, D, backend=backend)
    assert y[0, 65:, 0, 3].isnan().all()
    assert torch.isfinite(y[:, :64]).all()
    assert torch.isfinite(y[:, :, 1]).all()


@each(triton=[()])
def test_a_decay_that_is_not_a_number_is_not_hidden(backend):
    case = Ssd(1, 40, 1, 1, 4, 4, chunk=32)
    operands = [t.float() for t in case.operands()]
    operands[1][0, 7] = torch.nan
    y, state = case.call(backend, *operands)
    assert torch.isfinite(y[0, :7]).all()
    assert y[0, 8:].isnan().all()
    assert state.isnan().all()


@each("dtype", torch=DTYPES)
def test_rows_of_the_batch_are_taken_in_parts(backend, dtype):
    """Nine heads and chunks of 64 fill the cache with one row; one head takes five at once."""
    for heads in (9, 1):
        check(Ssd(5, 70, heads, 1, segmented=True, chunk=64), backend, dtype)


@needs_compiler
def test_threads_do_not_change_a_bit():
    case, before, found = Ssd(2, 150, 6, 2, 16, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(_all(case, "cpp"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@each("chunk", triton=[pytest.param(1, marks=slow), 128, pytest.param(None, marks=slow)])
def test_chunks_in_several_tiles_and_any_chunk_size(backend, chunk):
    check(Ssd(1, 150, 1, 1, 4, 4, segmented=True, chunk=chunk), backend)


@each(
    "programs, heads, groups",
    triton=[(1, 4, 1), pytest.param(10**9, 4, 2, marks=slow), pytest.param(8, 6, 1, marks=slow)],
)
def test_heads_of_a_group_in_one_program_or_in_several(backend, programs, heads, groups, monkeypatch):
    monkeypatch.setattr(gpu.SIZES, "programs", programs)
    check(Ssd(1, 24, heads, groups, chunk=16), backend)


@each("width, size", triton=[(130, 3), (3, 130), (17, 33)])
def test_wide_heads_and_large_states(backend, width, size):
    check(Ssd(1, 20, 1, 1, width, size, chunk=16), backend)


@each(torch=[()], cpp=[()], triton=[()])
def test_without_skip_and_initial_state(backend):
    check(Ssd(2, 40, 2, 2, skip=False, initial=False, chunk=32), backend)


@each(triton=[()])
def test_float64_runs_in_pytorch(backend):
    operands = Ssd(1, 20, 2, 1, 4, 4).operands()
    chosen = next(b for b in backends("ssd") if b.name == backend)
    assert chosen.refusal("cuda", torch.float64) is not None
    y, state = Ssd(1, 20, 2, 1).call(backend, operands[0].float(), *operands[1:])
    assert y.dtype == torch.float32
    assert state.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({2: torch.zeros(2, 5, 3, 3), 3: torch.zeros(2, 5, 3, 3)}, "3 B/C groups do not divide 4 heads"),
        ({1: torch.zeros(2, 5, 3)}, r"log_a has shape \[2, 5, 3\], want \[2, 5, 4\]"),
        ({3: torch.zeros(2, 5, 2, 4)}, r"C has shape \[2, 5, 2, 4\], want \[2, 5, 2, 3\]"),
        ({0: torch.zeros(2, 5, 4)}, r"want x \[B, L, H, P\]"),
        ({5: torch.zeros(2, 4, 5, 2)}, "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    case = Ssd(2, 5, 4, 2)
    with pytest.raises(UsageError, match=message):
        case.call(None, *(change.get(i, t) for i, t in enumerate(case.operands())))


def test_chunk_size_is_checked():
    case = Ssd(2, 5, 4, 2)
    with pytest.raises(UsageError, match="chunk_size is 0"):
        replace(case, chunk=0).call(None, *case.operands())
