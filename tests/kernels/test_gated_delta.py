"""The gated delta rule: every form against the recurrence and against the dense matrix, values and gradients."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close, compare, documents, each, results, slow, source, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import gated_delta, gated_delta_step

Q = 8
LENGTHS = [1, Q - 1, Q, Q + 1, 3 * Q + 7]
HEADS = [(1, 4, 4), (2, 6, 2), (3, 4, 1)]


@dataclass(frozen=True)
class Delta:
    batch: int
    length: int
    heads: int
    states: int
    width: int = 5
    size: int = 3
    segmented: bool = False
    initial: bool = True
    log_a: float | None = None
    """Of every third token."""
    alike: float = 0.0
    """How much keys have in common: 1 makes them equal."""
    seed: int = 0
    chunk: int | None = field(default=None, compare=False)

    def operands(self) -> list[Tensor | None]:
        draw, shape = source(self.seed), (self.batch, self.length)
        log_a = -F.softplus(2 * draw(*shape, self.states))
        if self.log_a is not None:
            log_a[:, ::3] = self.log_a
        q, v = draw(*shape, self.heads, self.size), draw(*shape, self.states, self.width)
        k = draw(*shape, self.states, self.size)
        k = F.normalize(torch.lerp(k, k[:, :1], self.alike), dim=-1) if self.length else k
        state = draw(self.batch, self.states, self.width, self.size)
        return [q, k, v, log_a, 2 * torch.sigmoid(draw(*shape, self.states)), state if self.initial else None]

    def segments(self) -> Tensor | None:
        return documents(self.batch, self.length, self.seed) if self.segmented else None

    def call(self, backend: str | None, *t: Tensor | None) -> Any:
        return gated_delta(
            *t[:5], initial_state_BKPN=t[5], segment_ids_BL=self.segments(), return_final_state=True,
            chunk_size=self.chunk, backend=backend,
        )  # fmt: skip


def check(case: Delta, backend: str, dtype: torch.dtype = torch.float32, limit: float = 1e-5) -> None:
    # The gradient of log a is zero for a single token, but computed as the difference of two sums.
    compare(case, backend, 1e-10 if dtype == torch.float64 else limit, dtype, beside=0.01)


@each(
    "case, dtype",
    torch=[
        (Delta(*shape, segmented=segmented, chunk=Q), torch.float64)
        for shape in ((b, n, h, k) for b, h, k in HEADS for n in LENGTHS)
        for segmented in (False, True)
    ]
    + [(Delta(2, n, 6, 2, 20, 33, segmented=n != 65, seed=n), torch.float32) for n in (2, 65, 150)],
    cpp=[
        (Delta(2, n, *shape, segmented=segmented), torch.float32)
        for shape in [(6, 2, 64, 64), (4, 1, 20, 33), (3, 3, 5, 3)]
        for n, segmented in ((1, False), (17, True), (32, True), (33, False), (131, True))
    ],
    triton=[(Delta(1, n, 2, 1, segmented=n != 31, chunk=16), torch.float32) for n in (1, 31, 40)],
)
def test_values_and_gradients(backend, case, dtype):
    check(case, backend, dtype)


@pytest.mark.parametrize("length", [1, 12])
def test_the_recurrence_is_that_of_the_paper(length):
    """S_t = a S (I - beta k kᵀ) + beta v kᵀ, written with matrices."""
    case = Delta(2, length, 4, 2)
    q, k, v, log_a, beta, state = case.operands()
    eye, ys = torch.eye(3, dtype=torch.float64), []
    for t in range(length):
        erase = eye - beta[:, t, :, None, None] * k[:, t, :, :, None] * k[:, t, :, None]
        state = log_a[:, t, :, None, None].exp() * state @ erase
        state = state + beta[:, t, :, None, None] * v[:, t, :, :, None] * k[:, t, :, None]
        ys.append(torch.einsum("bkpn,bkrn->bkrp", state, q[:, t].unflatten(1, (2, 2))).flatten(1, 2))
    assert_close(truth(case)[0], [torch.stack(ys, 1), state], 1e-12)


def test_a_written_value_is_read_back():
    """With beta 1 and no decay the state holds the last value of every key, as a dictionary does."""
    k = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 2, 1, 2, 3, 0])][None, :, None]
    v = torch.arange(12, dtype=torch.float64).view(1, 6, 1, 2)
    one = torch.ones(1, 6, 1, dtype=torch.float64)
    for backend in ("naive", "torch", None):
        _, state = gated_delta(k, k, v, 0 * one, one, return_final_state=True, backend=backend)
        assert_close([state[0, 0].T], [v[0, [5, 2, 3, 4], 0]], 1e-12)


@each(
    "alike, limit",
    torch=[(0.9, 1e-5), (1.0, 1e-5)],
    cpp=[(0.9, 1e-5), (1.0, 1e-5)],
    triton=[pytest.param(1.0, 1e-5, marks=slow)],
)
def test_keys_that_are_alike_lose_no_digits(backend, alike, limit):
    """Powers of the triangular matrix reach e^40 here; the system is solved without them."""
    check(Delta(1, 70 if backend == "triton" else 130, 2, 2, alike=alike, log_a=0.0), backend)


@pytest.mark.slow
def test_exporters_solve_the_same_system_by_products():
    case = Delta(1, 70, 2, 2, 4, 8, alike=0.95, log_a=0.0)

    class Module(torch.nn.Module):
        def forward(self, *t: Tensor) -> Any:
            return case.call(None, *t)

    operands = tuple(t.float() for t in case.operands())
    program = torch.export.export(Module(), operands)
    assert_close(program.module()(*operands), truth(case)[0], 1e-5)
    names = " ".join(str(node.target) for node in program.graph.nodes)
    assert not any(word in names for word in ("triangular", "cumsum", "inverse"))


@each(
    "log_a",
    torch=[0.0, -1e-7, -5.0, -90.0, -1e30],
    cpp=[0.0, -1e-7, -5.0, -90.0, -1e30],
    triton=[pytest.param(-90.0, marks=slow)],
)
def test_no_decay_is_too_weak_or_too_strong(backend, log_a):
    check(Delta(2, 50, 2, 2, log_a=log_a, chunk=Q), backend, limit=1e-4)


@each(cpp=[()])
def test_threads_do_not_change_a_bit(backend):
    case, before, found = Delta(2, 150, 6, 2, 16, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            values, grads = results(case.call, backend, case.operands(), torch.float32)
            found.append(values + grads)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each("width, size", triton=[(33, 17), (200, 3)])
def test_wide_values_and_more_than_a_program_takes(backend, width, size):
    check(Delta(1, 20, 2, 1, width, size), backend)


def test_gradcheck():
    case = Delta(2, 7, 4, 2, 2, 2, segmented=True, seed=5, chunk=3)
    leaves = [t.requires_grad_() for t in case.operands()]
    assert torch.autograd.gradcheck(lambda *t: case.call("torch", *t), leaves, fast_mode=True)


@each("dtype", torch=[torch.float64], cpp=[torch.float32])
@settings(max_examples=25)
@given(
    case=st.builds(
        Delta,
        batch=st.integers(1, 3),
        length=st.integers(0, 60),
        heads=st.sampled_from([6, 12]),
        states=st.sampled_from([1, 2, 3, 6]),
        width=st.integers(1, 24),
        size=st.integers(1, 24),
        chunk=st.none() | st.integers(1, 70),
        segmented=st.booleans(),
        initial=st.booleans(),
        seed=st.integers(0, 1000),
    )
)
def test_any_shape(backend, dtype, case):
    check(case, backend, dtype)


def test_pieces_with_carried_state_equal_the_whole():
    case = Delta(2, 37, 4, 2, chunk=Q)
    *operands, state = case.operands()
    ys = []
    for start, stop in itertools.pairwise([0, 1, 1, 9, 30, 35]):
        y, state = gated_delta(
            *(t[:, start:stop] for t in operands), initial_state_BKPN=state, return_final_state=True, chunk_size=Q
        )
        ys.append(y)
    for t in (35, 36):
        y, state = gated_delta_step(*(x[:, t] for x in operands), state)
        ys.append(y[:, None])
    assert_close([torch.cat(ys, 1), state], truth(case)[0], 1e-12)


def test_without_erasing_it_is_ssd():
    """Keys at right angles to all others never correct anything: what is left is the state space with decay."""
    from xarch.kernels import ssd

    draw = source()
    k = torch.eye(9, dtype=torch.float64)[None, :, None].expand(2, 9, 2, 9)
    q, v, log_a, beta = draw(2, 9, 2, 9), draw(2, 9, 2, 5), -F.softplus(draw(2, 9, 2)), torch.sigmoid(draw(2, 9, 2))

    def call(delta: str | None, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor) -> Any:
        return gated_delta(q, k, v, log_a, beta) if delta else ssd(beta[..., None] * v, log_a, k, q)

    got, want = (results(call, name, [q, k, v, log_a, beta], torch.float64)[0] for name in ("delta", None))
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 5, 3, 3)}, "2 key/value heads do not divide 3 query heads"),
        ({3: torch.zeros(2, 5, 3)}, r"log_a has shape \[2, 5, 3\], want \[2, 5, 2\]"),
        ({1: torch.zeros(2, 5, 2, 4)}, r"k has shape \[2, 5, 2, 4\], want \[2, 5, 2, 3\]"),
        ({2: torch.zeros(2, 5, 4)}, r"want q \[B, L, H, N\]"),
        ({5: torch.zeros(2, 4, 5, 2)}, "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    case = Delta(2, 5, 4, 2)
    with pytest.raises(UsageError, match=message):
        case.call(None, *(change.get(i, t) for i, t in enumerate(case.operands())))
    with pytest.raises(UsageError, match="chunk_size is 0"):
        Delta(2, 5, 4, 2, chunk=0).call(None, *case.operands())
