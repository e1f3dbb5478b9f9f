"""SSD: every form against the dense matrix, values and gradients (spec checks A1, A2)."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import mixing_matrix, ssd, ssd_step

Q = 8
LENGTHS = [1, Q - 1, Q, Q + 1, 3 * Q + 7]
HEADS = [(1, 4, 4), (2, 3, 3), (2, 6, 2), (3, 4, 1)]
VALUE_LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
GRADIENT_LIMIT = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass
class Case:
    x: Tensor
    log_a: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    state: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.log_a, self.B, self.C, self.D, self.state

    def to(self, dtype: torch.dtype) -> Case:
        """Same values, x, B and C rounded to a dtype, the others to a dtype that is never below float32."""
        wide = torch.promote_types(dtype, torch.float32)
        return Case(
            self.x.to(dtype),
            self.log_a.to(wide),
            self.B.to(dtype),
            self.C.to(dtype),
            self.D.to(wide),
            self.state.to(wide),
        )

    def leaves(self) -> Case:
        return Case(*(t.detach().clone().requires_grad_() for t in self.tensors()))

    def run(self, **kwargs: object) -> tuple[Tensor, Tensor]:
        return ssd(
            self.x,
            self.log_a,
            self.B,
            self.C,
            self.D,
            initial_state_BHPN=self.state,
            return_final_state=True,
            **kwargs,  # type: ignore[arg-type]
        )


def make(batch: int, length: int, heads: int, groups: int, width: int = 5, size: int = 3, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        x=randn(batch, length, heads, width),
        log_a=-torch.nn.functional.softplus(randn(batch, length, heads) * 2),
        B=randn(batch, length, groups, size),
        C=randn(batch, length, groups, size),
        D=randn(heads),
        state=randn(batch, heads, width, size),
    )


def documents(batch: int, length: int, seed: int = 0) -> Tensor:
    """Ids that change at random places and come back."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1) % 2


def dense(case: Case, segments: Tensor | None = None) -> Tensor:
    M = mixing_matrix(case.C, case.B, case.log_a, case.D, segment_ids_BL=segments)
    return torch.einsum("bhts,bshp->bthp", M, case.x)


@pytest.mark.parametrize("dtype", VALUE_LIMIT)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("batch", "heads", "groups"), HEADS)
def test_dense_recurrent_chunked_and_steps_agree(batch, heads, groups, length, dtype, error):
    case = make(batch, length, heads, groups).to(dtype)
    case.state.zero_()
    exact = case.to(torch.float64)
    want = dense(exact)
    limit = VALUE_LIMIT[dtype]
    _, state_want = exact.run(backend="naive")
    for backend in ("naive", "torch"):
        y, state = case.run(backend=backend, chunk_size=Q)
        assert y.dtype == dtype
        assert state.dtype == torch.promote_types(dtype, torch.float32)
        assert error(y, want) <= limit
        assert error(state, state_want) <= limit
    state, ys = case.state, []
    for t in range(length):
        y, state = ssd_step(case.x[:, t], case.log_a[:, t], case.B[:, t], case.C[:, t], case.D, state)
        ys.append(y)
    assert error(torch.stack(ys, 1), want) <= limit
    assert error(state, state_want) <= limit


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("dtype", GRADIENT_LIMIT)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("batch", "heads", "groups"), HEADS)
def test_chunked_gradients_equal_autograd_through_the_recurrence(batch, heads, groups, length, dtype, segmented, error):
    base = make(batch, length, heads, groups, seed=1)
    segments = documents(batch, length) if segmented else None
    want_in, got_in = base.leaves(), base.to(dtype).leaves()
    want = want_in.run(backend="naive", segment_ids_BL=segments)
    got = got_in.run(backend="torch", segment_ids_BL=segments, chunk_size=Q)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in want]
    wanted = torch.autograd.grad(want, want_in.tensors(), upstream)
    found = torch.autograd.grad(got, got_in.tensors(), [u.to(dtype) for u in upstream])
    for value, truth in zip(got, want, strict=True):
        assert error(value, truth) <= VALUE_LIMIT[dtype]
    for value, truth in zip(found, wanted, strict=True):
        assert error(value, truth) <= GRADIENT_LIMIT[dtype]


@pytest.mark.parametrize("length", [3 * Q + 7])
def test_chunked_gradients_equal_autograd_through_the_dense_matrix(length, error):
    case, twin = make(2, length, 6, 3).leaves(), make(2, length, 6, 3).leaves()
    segments = documents(2, length)
    got = ssd(case.x, case.log_a, case.B, case.C, case.D, segment_ids_BL=segments, chunk_size=Q, backend="torch")
    want = dense(twin, segments)
    upstream = torch.randn_like(want)
    found = torch.autograd.grad(got, case.tensors()[:5], upstream)
    for value, truth in zip(found, torch.autograd.grad(want, twin.tensors()[:5], upstream), strict=True):
        assert error(value, truth) <= 1e-10


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups):
    case = make(2, 7, 2, groups, width=2, size=2).leaves()
    segments = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
    assert torch.autograd.gradcheck(
        lambda x, log_a, B, C, D, state: ssd(
            x,
            log_a,
            B,
            C,
            D,
            initial_state_BHPN=state,
            segment_ids_BL=segments,
            return_final_state=True,
            chunk_size=3,
            backend="torch",
        ),
        case.tensors(),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 40),
    groups=st.integers(1, 3),
    ratio=st.integers(1, 3),
    width=st.integers(1, 6),
    size=st.integers(1, 6),
    chunk=st.integers(1, 45),
    segmented=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(error, batch, length, groups, ratio, width, size, chunk, segmented, seed):
    base = make(batch, length, groups * ratio, groups, width, size, seed)
    segments = documents(batch, length, seed) if segmented else None
    want_in, got_in = base.leaves(), base.leaves()
    want = want_in.run(backend="naive", segment_ids_BL=segments)
    got = got_in.run(backend="torch", segment_ids_BL=segments, chunk_size=chunk)
    wanted = torch.autograd.grad(
        sum(t.square().sum() for t in want), want_in.tensors(), allow_unused=True, materialize_grads=True
    )
    found = torch.autograd.grad(
        sum(t.square().sum() for t in got), got_in.tensors(), allow_unused=True, materialize_grads=True
    )
    for value, truth in zip((*got, *found), (*want, *wanted), strict=True):
        assert error(value, truth) <= 1e-10


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(0, 37), max_size=6), segmented=st.booleans(), backend=st.sampled_from(["naive", "torch"])
)
def test_pieces_with_carried_state_equal_the_whole(error, cuts, segmented, backend):
    case = make(2, 37, 4, 2)
    # One document only, but declared: ids are compared inside a piece, the state carries across pieces.
    segments = torch.ones(2, 37, dtype=torch.long) if segmented else None
    want, state_want = case.run(chunk_size=Q, backend="naive")
    edges = [0, *sorted(cuts), 37]
    state, ys = case.state, []
    for start, stop in itertools.pairwise(edges):
        part = Case(*(t[:, start:stop] for t in case.tensors()[:4]), case.D, state)
        y, state = part.run(
            chunk_size=Q, backend=backend, segment_ids_BL=None if segments is None else segments[:, start:stop]
        )
        ys.append(y)
    assert error(torch.cat(ys, 1), want) <= 1e-12
    assert error(state, state_want) <= 1e-12


def test_prefill_then_steps_equal_the_whole(error):
    case = make(2, 70, 4, 4)
    want, state_want = case.run(backend="naive")
    y, state = replace(case, **{n: getattr(case, n)[:, :33] for n in ("x", "log_a", "B", "C")}).run(backend="torch")
    ys = [y]
    for t in range(33, 70):
        y_t, state = ssd_step(case.x[:, t], case.log_a[:, t], case.B[:, t], case.C[:, t], case.D, state)
        ys.append(y_t[:, None])
    assert error(torch.cat(ys, 1), want) <= 1e-12
    assert error(state, state_want) <= 1e-12


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_packed_documents_equal_separate_calls(backend, error):
    case = make(1, 29, 4, 2)
    case.state.zero_()
    lengths = [1, 8, 13, 7]
    segments = torch.repeat_interleave(torch.tensor([5, 0, 5, 2]), torch.tensor(lengths))[None]
    packed, state = case.run(segment_ids_BL=segments, chunk_size=Q, backend=backend)
    start, ys = 0, []
    for length in lengths:
        part = Case(*(t[:, start : start + length] for t in case.tensors()[:4]), case.D, case.state)
        y, last = part.run(backend="naive")
        ys.append(y)
        start += length
    assert error(packed, torch.cat(ys, 1)) <= 1e-12
    assert error(state, last) <= 1e-12


def test_decay_at_a_document_start_has_no_gradient():
    case = make(1, 20, 2, 2).leaves()
    segments = torch.arange(20)[None] // 5
    ssd(case.x, case.log_a, case.B, case.C, segment_ids_BL=segments, chunk_size=Q).square().sum().backward()
    assert case.log_a.grad is not None
    assert case.log_a.grad[:, ::5].abs().max() <= 1e-12 * case.log_a.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_a", [0.0, -1e-7, -5.0, -90.0, -1e4, float("-inf")])
def test_no_decay_is_too_weak_or_too_strong(log_a, dtype, error):
    case = make(2, 50, 2, 2).to(dtype)
    case.log_a[:, ::3] = max(log_a, -1e30)
    got_in, want_in = case.leaves(), case.to(torch.float64).leaves()
    got, want = got_in.run(backend="torch", chunk_size=Q), want_in.run(backend="naive")
    found = torch.autograd.grad(got[0].sum() + got[1].sum(), got_in.tensors())
    wanted = torch.autograd.grad(want[0].sum() + want[1].sum(), want_in.tensors())
    limit = 1e-4 if dtype == torch.float32 else 1e-10
    for value, truth in zip((*got, *found), (*want, *wanted), strict=True):
        assert error(value, truth) <= limit


def test_strides_do_not_matter(error):
    case = make(2, 21, 4, 2)
    strided = Case(
        case.x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        case.log_a.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([case.B, case.B], -1)[..., 0],
        case.C.transpose(1, 3).contiguous().transpose(1, 3),
        case.D.expand(3, -1)[1],
        case.state.transpose(2, 3).contiguous().transpose(2, 3),
    )
    assert not strided.x.is_contiguous()
    a, b = case.leaves(), [t.detach().requires_grad_() for t in strided.tensors()]
    want = a.run(backend="torch", chunk_size=Q)
    got = Case(*b).run(backend="torch", chunk_size=Q)
    upstream = [torch.randn_like(t).transpose(0, 1).contiguous().transpose(0, 1) for t in want]
    for value, truth in zip(got, want, strict=True):
        assert error(value, truth) <= 1e-12
    for value, truth in zip(
        torch.autograd.grad(got, b, upstream), torch.autograd.grad(want, a.tensors(), upstream), strict=True
    ):
        assert error(value, truth) <= 1e-12


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_no_tokens(backend):
    case = make(2, 0, 4, 2)
    y, state = case.run(backend=backend)
    assert y.shape == (2, 0, 4, 5)
    assert torch.equal(state, case.state)


def test_rows_of_the_batch_taken_in_parts_change_nothing(monkeypatch, error):
    chunked = importlib.import_module("xarch.kernels.ssd.plain")
    case = make(5, 19, 2, 1)
    segments = documents(5, 19)
    results = []
    for limit in (1, 10**9):
        monkeypatch.setattr(chunked, "_CACHE_ELEMENTS", limit)
        leaves = case.leaves()
        out = leaves.run(backend="torch", chunk_size=Q, segment_ids_BL=segments)
        results.append((*out, *torch.autograd.grad(out[0].square().sum() + out[1].sum(), leaves.tensors())))
    for value, truth in zip(*results, strict=True):
        assert error(value, truth) <= 1e-12


def test_only_the_state_is_used(error):
    case, twin = make(2, 19, 2, 1).leaves(), make(2, 19, 2, 1).leaves()
    leaves = [0, 1, 2, 5]
    found = torch.autograd.grad(case.run(backend="torch", chunk_size=Q)[1].sum(), [case.tensors()[i] for i in leaves])
    wanted = torch.autograd.grad(twin.run(backend="naive")[1].sum(), [twin.tensors()[i] for i in leaves])
    for value, truth in zip(found, wanted, strict=True):
        assert error(value, truth) <= 1e-10


def test_backward_twice_gives_the_same():
    case = make(1, 19, 2, 2).leaves()
    y, _ = case.run(backend="torch", chunk_size=Q)
    first = torch.autograd.grad(y.sum(), case.tensors(), retain_graph=True)
    second = torch.autograd.grad(y.sum(), case.tensors())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_does_not_reach_the_islands():
    case = make(1, 30, 2, 2).to(torch.float32).leaves()
    want, _ = case.run(backend="torch")
    wanted = torch.autograd.grad(want.sum(), case.tensors())
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = case.run(backend="torch")
        found = torch.autograd.grad(got.sum(), case.tensors())
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_shapes_without_memory():
    case = make(2, 21, 4, 2)
    y, state = Case(*(t.to("meta") for t in case.tensors())).run()
    assert y.shape == case.x.shape
    assert state.shape == case.state.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": torch.zeros(2, 5, 3, 3), "C": torch.zeros(2, 5, 3, 3)}, "3 B/C groups do not divide 4 heads"),
        ({"log_a": torch.zeros(2, 5, 3)}, r"log_a has shape \[2, 5, 3\], want \[2, 5, 4\]"),
        ({"C": torch.zeros(2, 5, 2, 4)}, r"C has shape \[2, 5, 2, 4\], want \[2, 5, 2, 3\]"),
        ({"x": torch.zeros(2, 5, 4)}, r"want x \[B, L, H, P\]"),
        ({"state": torch.zeros(2, 4, 5, 2)}, "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        replace(make(2, 5, 4, 2), **change).run()


def test_chunk_size_is_checked():
    with pytest.raises(UsageError, match="chunk_size is 0"):
        make(2, 5, 4, 2).run(chunk_size=0)
