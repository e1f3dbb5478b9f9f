"""The distance between the two matrices without building them, against the materialised one (spec check A3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_close, compare, documents, each, needs_compiler, results, slow, source, truth
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xarch.errors import UsageError
from xarch.kernels import attention_matrix, gpu, matrix_distance, mixing_matrix, ssd

# Query heads, key heads, B/C groups.
HEADS = [(4, 4, 4), (6, 2, 6), (6, 3, 2), (4, 1, 1), (6, 2, 3)]
GROUPS = [(2, 1, 2), (2, 1, 1)]
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
LIMITS = {F64: 1e-10, F32: 1e-5}


@dataclass(frozen=True)
class Pair:
    batch: int
    length: int
    heads: tuple[int, int, int]
    width: int = 5
    size: int = 3
    window: int | None = None
    softcap: float | None = None
    documents: float = 0.0
    """How often they change; -1: every 64 tokens."""
    padding: str = ""
    skip: bool = True
    scale: float = 0.6
    shift: float = -1.0
    """Added to the logarithm of the decay, before softplus."""
    log_a: float | None = None
    """Of every third token."""
    strong: bool = False
    """Scores of 200 and decays of 0 and 1."""
    seed: int = 0
    tile: tuple[int, int] | None = field(default=None, compare=False)

    def operands(self) -> list[Tensor | None]:
        draw, shape, (query, key, group) = source(self.seed), (self.batch, self.length), self.heads
        q, k = draw(*shape, query, self.width), draw(*shape, key, self.width)
        C, B = draw(*shape, group, self.size) / self.size**0.5, draw(*shape, group, self.size)
        log_a, D = -F.softplus(draw(*shape, query) + self.shift), draw(query)
        if self.log_a is not None:
            log_a[:, ::3] = self.log_a
        if self.strong:
            q *= 200
            log_a[:, ::3], log_a[:, 1::3] = -1e30, 0
        return [q, k, C, B, log_a, D if self.skip else None]

    def mask(self) -> Tensor:
        """Sequence b has b tokens of padding less than half of the length."""
        count = torch.tensor([max(self.length // 2 - b, 0) for b in range(self.batch)])[:, None]
        real = torch.arange(self.length)[None] < self.length - count
        return real.flip(1) if self.padding == "left" else real

    def segments(self) -> Tensor | None:
        if self.documents < 0:
            return (torch.arange(self.length) // 64).expand(self.batch, -1)
        return documents(self.batch, self.length, self.seed, self.documents) if self.documents else None

    def call(self, backend: str | None, *t: Tensor | None) -> Any:
        tile = {} if self.tile is None else {"tile": self.tile}
        return matrix_distance(
            *t, scale=self.scale, window=self.window, softcap=self.softcap, segment_ids_BL=self.segments(),
            mask_BL=self.mask() if self.padding else None, backend=backend, **tile,
        )  # fmt: skip


def check(case: Pair, backend: str, dtype: torch.dtype = F32, limit: float | None = None) -> None:
    """The distance of half-precision operands is that of the rounded ones."""
    values, grads = results(case.call, backend, case.operands(), dtype, fixed=2)
    assert {t.dtype for t in values} == {dtype}
    want = truth(case)
    limit = limit or LIMITS[dtype]
    assert_close(values, want[0], limit)
    for got, slope in zip(grads, want[1][2:], strict=True):
        # One token has no decay: its gradient is zero, not small, and what is found is rounding of order one.
        assert_close([got], [slope], limit, 1e-3 if slope.any() else 0.1)


OPTIONS = [
    {"window": 1},
    {"window": 6},
    {"window": 100},
    {"softcap": 1.5},
    {"documents": 0.03},
    {"documents": 0.3},
    {"documents": -1.0},
    {"padding": "right"},
    {"padding": "left"},
    {"window": 70, "softcap": 2.0, "documents": 0.03, "padding": "right", "seed": 1},
]
TILES = [(7, 16), (16, 7), (5, 5), (1, 3), (64, 64)]


@each(
    "case, dtype",
    torch=[
        (Pair(2, n, heads, tile=(16, 16)), dtype)
        for n in (1, 15, 16, 17, 55)
        for heads in HEADS
        for dtype in (F64, F32)
    ],
    cpp=[(Pair(2, n, heads, 20, 35, shift=-3), F32) for n in (1, 2, 63, 64, 65, 201) for heads in HEADS[:4]],
    triton=[(Pair(1, n, (2, 2, 2), 4), F32) for n in (1, 2, 31, 130)],
)
def test_values_and_gradients(backend, case, dtype):
    check(case, backend, dtype)


@each(
    "case, dtype",
    torch=[
        (Pair(3, 41, heads, tile=tile, **options), F64) for options in OPTIONS for heads in HEADS[1:3] for tile in TILES
    ],
    cpp=[(Pair(3, 201, heads, shift=-3, **options), F32) for options in OPTIONS for heads in HEADS[1:3]],
    triton=[
        *(pytest.param(Pair(1, 70, (2, 1, 2), 4, **OPTIONS[i]), F32, marks=slow) for i in (0, 1, 3, 8)),
        *((Pair(2, 70, heads, 4, documents=0.05, padding="left", softcap=0.7, window=20), F32) for heads in GROUPS),
    ],
)
def test_every_option(backend, case, dtype):
    check(case, backend, dtype)


@each("heads", torch=HEADS)
def test_bfloat16_operands_are_widened_first(backend, heads):
    case = Pair(2, 55, heads, tile=(16, 16))
    dtypes = [BF16] * 4 + [F32] * 2
    rounded = [t.to(d).double() for t, d in zip(case.operands(), dtypes, strict=True)]
    got, want = results(case.call, backend, case.operands(), dtypes, 2), results(case.call, "naive", rounded, F64, 2)
    assert [g.dtype for g in got[1]] == dtypes[2:]
    assert_close(got[0], want[0], 1e-5)
    assert_close(got[1], want[1], 5e-3)


def pairs(**changes: Any) -> Any:
    arguments = {
        "batch": st.integers(1, 3),
        "length": st.integers(1, 90),
        "heads": st.sampled_from(HEADS),
        "width": st.integers(1, 40),
        "size": st.integers(1, 70),
        "window": st.none() | st.integers(1, 100),
        "softcap": st.none() | st.floats(0.5, 5),
        "documents": st.sampled_from([0.0, 0.15]),
        "padding": st.sampled_from(["", "left", "right"]),
        "skip": st.booleans(),
        "scale": st.just(0.1),
        "seed": st.integers(0, 1000),
    }
    return st.builds(Pair, **(arguments | changes))


@each(torch=[()])
@settings(max_examples=60)
@given(
    case=pairs(
        length=st.integers(1, 33), width=st.integers(1, 6), size=st.integers(1, 6),
        tile=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    )
)  # fmt: skip
def test_any_shape(backend, case):
    check(case, backend, F64)


@each(cpp=[()])
@settings(max_examples=40)
@given(case=pairs(shift=st.just(-3.0)))
def test_any_shape_in_float32(backend, case):
    check(case, backend)


@each(triton=[pytest.param(marks=slow)])
@settings(max_examples=4, phases=[Phase.generate])
@given(
    case=pairs(
        batch=st.just(1), heads=st.sampled_from([*GROUPS, (4, 2, 2)]), width=st.integers(1, 20), size=st.integers(1, 20)
    )
)
def test_any_shape_in_the_interpreter(backend, case):
    check(case, backend)


@each("heads", torch=[(6, 3, 2), (6, 2, 6)])
def test_heads_are_taken_in_parts(backend, heads):
    """A tile of 512 x 512 fills the cache with one head, one of 160 x 160 with ten."""
    for tile in ((512, 512), (160, 160)):
        check(Pair(2, 520, heads, 4, documents=0.01, tile=tile), backend, F64)


@pytest.mark.parametrize("heads", [(2, 1, 2), (2, 2, 1)])
def test_gradcheck(heads):
    case = Pair(2, 7, heads, 2, 2, documents=0.15, tile=(3, 2))
    q, k, *student = case.operands()
    leaves = [t.requires_grad_() for t in student]
    assert torch.autograd.gradcheck(lambda *t: case.call("torch", q, k, *t).distance_BH, leaves)


@each(naive=[()], torch=[()], cpp=[()], triton=[()])
def test_teacher_gets_no_gradient_and_its_norm_has_none(backend):
    tensors = [t.float().requires_grad_() for t in Pair(1, 9, (2, 1, 2)).operands()]
    result = Pair(1, 9, (2, 1, 2)).call(backend, *tensors)
    assert not result.teacher_norm_BH.requires_grad
    (result.distance_BH / result.teacher_norm_BH).sum().backward()
    assert [t.grad is None for t in tensors] == [True, True, False, False, False, False]


@each("heads", naive=HEADS[1:2], torch=HEADS[1:3], cpp=HEADS[1:3], triton=GROUPS[:1])
def test_no_skip_weight_and_no_gradient_wanted(backend, heads):
    case = Pair(1, 40, heads, skip=False)
    q, k, C, B, log_a, _ = (None if t is None else t.float() for t in case.operands())
    without = case.call(backend, q, k, C, B, log_a, None)
    zero = case.call("naive", *(t.double() for t in (q, k, C, B, log_a)), torch.zeros(heads[0]).double())
    assert_close(without, zero, 1e-5)
    assert not without.distance_BH.requires_grad
    # Of one factor alone.
    only = B.clone().requires_grad_()
    (got,) = torch.autograd.grad(case.call(backend, q, k, C, only, log_a, None).distance_BH.sum(), only)
    leaf = B.double().requires_grad_()
    exact = case.call("naive", q.double(), k.double(), C.double(), leaf, log_a.double(), None).distance_BH
    assert_close([got], torch.autograd.grad(exact.sum(), leaf), 1e-5)


@each("heads", naive=[(2, 2, 2), (2, 2, 1)], torch=[(2, 2, 2), (2, 2, 1)], cpp=[(2, 2, 2), (2, 2, 1)], triton=GROUPS)
def test_equal_matrices_have_distance_and_gradient_zero(backend, heads):
    # A window of one token makes attention the identity, which is the skip weight alone.
    case = Pair(2, 12 if backend == "triton" else 70, heads, window=1, tile=(5, 5))
    operands = [t.float() for t in case.operands()]
    operands[2].zero_()
    operands[5].fill_(1)
    (distance, norm), grads = results(case.call, backend, operands, F32, 2)
    assert torch.equal(distance, torch.zeros(2, 2))
    assert torch.allclose(norm, torch.full((2, 2), math.sqrt(case.length)))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@each("shape", torch=[(0, 5, 2), (2, 0, 2)], cpp=[(0, 5, 2), (2, 0, 2)], triton=[(2, 0, 2)])
def test_nothing_to_compare(backend, shape):
    batch, length, heads = shape
    case = Pair(batch, length, (heads, 1, 1))
    (distance, norm), grads = results(case.call, backend, case.operands(), F32, 2)
    assert torch.equal(distance, torch.zeros(batch, heads))
    assert torch.equal(norm, torch.zeros(batch, heads))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_mixing_matrix_is_what_ssd_applies(error):
    case = Pair(2, 23, HEADS[2], documents=0.15)
    _, _, C, B, log_a, D = case.operands()
    x = torch.randn(2, 23, 6, 4, dtype=F64)
    M = mixing_matrix(C, B, log_a, D, segment_ids_BL=case.segments())
    want = ssd(x, log_a, B, C, D, segment_ids_BL=case.segments(), backend="naive")
    assert error(torch.einsum("bhts,bshp->bthp", M, x), want) <= 1e-12


def test_attention_matrix_is_what_torch_applies(error):
    q, k, *_ = Pair(2, 23, HEADS[1]).operands()
    v = torch.randn(2, 6, 23, 5, dtype=F64)
    P = attention_matrix(q, k, scale=0.3)
    keys = k.repeat_interleave(3, 2).transpose(1, 2)
    want = F.scaled_dot_product_attention(q.transpose(1, 2), keys, v, is_causal=True, scale=0.3)
    assert error(P @ v, want) <= 1e-12
    assert torch.allclose(P.sum(-1), torch.ones(2, 6, 23, dtype=P.dtype))


@each(
    "case, dtype, limit",
    torch=[(Pair(2, 60, h, strong=True, tile=(16, 16)), d, None) for h in ((4, 2, 4), (4, 2, 2)) for d in (F64, F32)],
    # A score of 600 has an error of 3e-5 in float32, and so has its exponential.
    cpp=[
        *((Pair(2, 150, (4, 2, 4), strong=True, softcap=s), F32, 2e-4) for s in (None, 30.0)),
        # A tile's prefix sums reach -1300, where float32 is 6e-5 apart.
        *(
            (Pair(1, 200, heads, log_a=a, documents=d), F32, 3e-6)
            for heads in GROUPS for a in (-90.0, -1e4) for d in (0.0, 0.03)
        ),
        # Tiles whose decays vanish count for the teacher.
        *((Pair(1, 400, heads, shift=1.0), F32, None) for heads in GROUPS),
    ],
    triton=[
        (Pair(1, 100, (2, 2, 2), 4, 4, log_a=a), F32, None)
        for a in (0.0, -1e4)
    ] + [pytest.param(Pair(1, 150, (2, 2, 2), 4, 4, log_a=a), F32, None, marks=slow) for a in (-1e-7, -90.0)],
)  # fmt: skip
def test_no_decay_and_no_score_is_too_strong(backend, case, dtype, limit):
    check(case, backend, dtype, limit)


@each("factor, limit", torch=[(10, 2e-5)], cpp=[(50, 1e-5)])
def test_prefix_sums_keep_their_digits_far_from_the_start(backend, factor, limit):
    case = Pair(1, 1500, (1, 1, 1))
    operands = case.operands()
    operands[4] *= factor
    rounded = [t.float().double() for t in operands]
    got, want = results(case.call, backend, rounded, F32, 2), results(case.call, "naive", rounded, F64, 2)
    assert_close(got[0] + got[1], want[0] + want[1], limit)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@each("heads", torch=GROUPS, cpp=GROUPS)
def test_no_tensor_is_quadratic_in_tokens(backend, heads):
    length, tile = 600, 32
    case = Pair(1, length, heads, 4, 4, tile=(tile, tile))
    with Largest() as seen:
        results(case.call, backend, case.operands(), F32, 2)
    assert 0 < seen.elements <= max(heads[0] * tile * tile, length * heads[0] * 4)
    with Largest() as seen:
        case.call("naive", *case.operands())
    assert seen.elements >= length * length


@needs_compiler
def test_padding_may_hold_anything():
    case = Pair(2, 100, (4, 2, 2), padding="right")
    operands = case.operands()
    want = results(case.call, "cpp", operands, F32, 2)
    for t in operands[:4]:
        t[~case.mask()] = torch.nan
    got = results(case.call, "cpp", operands, F32, 2)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))


@needs_compiler
@pytest.mark.parametrize("place", range(5))
def test_nan_comes_through(place):
    case = Pair(1, 130, (2, 2, 2))
    operands = [t.float() for t in case.operands()]
    operands[place][0, 70, 1] = torch.nan
    found = case.call("cpp", *operands)
    assert torch.isnan(found.distance_BH[0, 1])
    assert torch.isfinite(found.distance_BH[0, 0])


@needs_compiler
def test_no_second_derivative_is_an_error_not_a_wrong_number():
    case = Pair(1, 9, (2, 2, 2))
    q, k, *student = (t.float() for t in case.operands())
    leaves = [t.requires_grad_() for t in student]
    distance = case.call("cpp", q, k, *leaves).distance_BH
    (dC,) = torch.autograd.grad(distance.sum(), leaves[:1], create_graph=True)
    with pytest.raises(UsageError, match="no second derivatives"):
        dC.square().sum().backward()


@needs_compiler
@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 2, 2), (1, 1, 1)])
def test_threads_change_rounding_only_and_runs_nothing(heads):
    case, before, found = Pair(1, 400, heads), torch.get_num_threads(), {}

    def everything() -> list[Tensor]:
        values, grads = results(case.call, "cpp", case.operands(), F32, 2)
        return values + grads

    try:
        for threads in (1, 3, 4):
            torch.set_num_threads(threads)
            found[threads] = [everything() for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for first, *others in found.values():
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert_close(first, found[1][0], 3e-6)


@each("groups", cpp=[2], triton=[pytest.param(2, marks=slow)])
def test_gradients_formed_in_the_forward_pass(backend, groups):
    """With a B/C group per head: the operator keeps its contract, and compilers of models see one graph."""
    case = Pair(1, 20, (2, 1, groups), 4, 4, window=7, padding="left")
    q, k, *student = (t.float() for t in case.operands())
    leaves = [t.requires_grad_() for t in student]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if backend == "cpp":
        arguments = (q, k, *leaves, None, case.mask(), 0.6, 7, None, True)
    else:
        # Saved for the backward pass, these are outputs that no caller sees; only the distance is differentiated.
        arguments = (*leaves, q, k, None, None, None, 0.5, None, None, True)
    operator = getattr(torch.ops.xarch, f"matrix_distance_{backend}_forward")
    torch.library.opcheck(operator, arguments, test_utils=checks)
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    got, want = (results(f, backend, case.operands(), F32, 2) for f in (compiled, case.call))
    assert_close(got[0] + got[1], want[0] + want[1], 0.0 if backend == "cpp" else 1e-5)


@each("heads, programs", triton=[((4, 2, 2), 1), pytest.param((4, 2, 2), 10**9, marks=slow)])
def test_heads_of_a_group_in_one_program_or_in_several(backend, heads, programs, monkeypatch):
    monkeypatch.setattr(gpu.SIZES, "programs", programs)
    check(Pair(1, 40, heads, 4), backend)


@each("width, size", triton=[(130, 3), (3, 130), (17, 33)])
def test_wide_heads_and_large_states(backend, width, size):
    compare(Pair(1, 40, (1, 1, 1), width, size, scale=0.4), backend, 1e-5)


def test_a_float64_operand_makes_the_distance_float64():
    operands = [t.float() for t in Pair(1, 30, (2, 2, 2)).operands()]
    operands[0] = operands[0].double()
    assert matrix_distance(*operands, scale=1.0).distance_BH.dtype == F64


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({1: torch.zeros(2, 9, 4, 5)}, {}, "4 key heads do not divide 6 heads"),
        ({3: torch.zeros(2, 9, 6, 4)}, {}, r"B has shape \[2, 9, 6, 4\], want \[2, 9, 6, 3\]"),
        ({4: torch.zeros(2, 9, 5)}, {}, "log_a has shape"),
        ({}, {"window": 0}, "window is 0"),
        ({}, {"tile": (0, 8)}, "tile is"),
        ({}, {"mask_BL": torch.ones(2, 8)}, "mask has shape"),
    ],
)
def test_wrong_arguments_are_named(change, options, message):
    operands = [change.get(i, t) for i, t in enumerate(Pair(2, 9, HEADS[1]).operands())]
    with pytest.raises(UsageError, match=message):
        matrix_distance(*operands, scale=1.0, **options)
