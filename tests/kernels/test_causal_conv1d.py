"""Causal convolution: every form against torch's own convolution and against the sum over taps."""

from __future__ import annotations

import itertools
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
from xarch.kernels import causal_conv1d, causal_conv1d_step

SHAPES = [(16, 4), (37, 3), (5, 2), (40, 1), (19, 6)]


@dataclass(frozen=True)
class Conv:
    batch: int
    length: int
    channels: int
    taps: int
    bias: bool = True
    state: bool = True
    segmented: bool = False
    seed: int = 0

    def operands(self) -> list[Tensor | None]:
        draw = source(self.seed)
        x, weight = draw(self.batch, self.length, self.channels), draw(self.channels, self.taps)
        bias, state = draw(self.channels), draw(self.batch, self.channels, self.taps - 1)
        return [x, weight, bias if self.bias else None, state if self.state else None]

    def call(self, backend: str | None, *t: Tensor | None) -> Any:
        return causal_conv1d(
            *t[:3], initial_state_BCJ=t[3], return_final_state=True, backend=backend,
            segment_ids_BL=documents(self.batch, self.length, self.seed) if self.segmented else None,
        )  # fmt: skip


def check(case: Conv, backend: str, dtype: torch.dtype = torch.float32, limit: float = 1e-6) -> None:
    compare(case, backend, 1e-11 if dtype == torch.float64 else limit, dtype, floor=1.0)


@each(naive=[()], torch=[()])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 100])
def test_equals_torch_convolution(length, dtype, limit, backend, error):
    x, weight, bias, state = (t.to(dtype) for t in Conv(2, length, 6, 4).operands())
    y, last = causal_conv1d(x, weight, bias, initial_state_BCJ=state, return_final_state=True, backend=backend)
    extended = torch.cat([state, x.transpose(1, 2)], 2).double()
    want = F.conv1d(extended, weight.double()[:, None], bias.double(), groups=6).transpose(1, 2)
    assert y.dtype == dtype
    assert error(y, want) <= limit
    assert torch.equal(last.double(), extended[:, :, -3:])
    unaided = causal_conv1d(x, weight, backend=backend)
    want = F.conv1d(F.pad(x.double().transpose(1, 2), (3, 0)), weight.double()[:, None], groups=6).transpose(1, 2)
    assert error(unaided, want) <= limit


@each(
    "case, dtype",
    torch=[
        (Conv(2, n, *shape, segmented=s), torch.float64) for n in (1, 2, 11) for shape in SHAPES for s in (False, True)
    ],
    cpp=[
        (Conv(2, n, *shape, segmented=s), torch.float32)
        for n in (1, 2, 3, 8, 11, 255, 256, 257, 600)
        for shape in SHAPES
        for s in (False, True)
    ],
    triton=[
        (Conv(2, n, 5, 4, bias=b, state=s, segmented=n % 2 == 0), torch.float32)
        for n in (1, 2, 63, 64, 130)
        for b, s in ((False, False), (True, False), (True, True))
    ],
)
def test_values_and_gradients(backend, case, dtype):
    check(case, backend, dtype)


@each(
    "case",
    # Many channels leave blocks of 16 tokens.
    torch=[Conv(2, 70, 2048, 3, segmented=True)],
    # More tokens than 128 slabs of 256.
    cpp=[Conv(2, 17_000, 3, 4)],
)
def test_many_blocks_of_tokens(backend, case):
    check(case, backend)


@each("dtype", torch=[torch.float64], cpp=[torch.float32])
@settings(max_examples=60)
@given(
    case=st.builds(
        Conv, st.integers(0, 3), st.integers(0, 60), st.integers(1, 70), st.integers(1, 7), st.booleans(),
        st.booleans(), st.booleans(), st.integers(0, 1000),
    )
)  # fmt: skip
def test_any_shape(backend, dtype, case):
    # A single channel can have a gradient of its bias that cancels.
    check(case, backend, dtype, 2e-6)


@each(triton=[pytest.param(marks=slow)])
@settings(max_examples=10, phases=[Phase.generate])
@given(
    case=st.builds(
        Conv, st.integers(1, 3), st.integers(1, 140), st.integers(1, 130), st.integers(1, 6), segmented=st.booleans()
    )
)
def test_any_shape_in_the_interpreter(backend, case):
    compare(case, backend, 1e-5)


@pytest.mark.parametrize("stateful", [False, True])
def test_gradcheck(stateful):
    case = Conv(2, 7, 2, 3, state=stateful)
    ids = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
    leaves = [t.requires_grad_() for t in case.operands() if t is not None]

    def run(*t: Tensor) -> Any:
        state = t[3] if stateful else None
        options = {"segment_ids_BL": ids, "return_final_state": True, "backend": "torch"}
        return causal_conv1d(*t[:3], initial_state_BCJ=state, **options)

    assert torch.autograd.gradcheck(run, leaves)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 20), max_size=6), backend=st.sampled_from(["naive", "torch"]))
def test_pieces_and_steps_equal_the_whole(cuts, backend):
    case = Conv(2, 20, 3, 4)
    x, weight, bias, state = case.operands()
    want, last = truth(case)[0]
    ys, carried = [], state
    for start, stop in itertools.pairwise([0, *sorted(cuts), 20]):
        y, carried = case.call(backend, x[:, start:stop], weight, bias, carried)
        ys.append(y)
    assert_close([torch.cat(ys, 1)], [want], 1e-12)
    assert torch.equal(carried, last)
    ys, carried = [], state
    for t in range(20):
        y, carried = causal_conv1d_step(x[:, t], weight, bias, carried)
        ys.append(y)
    assert_close([torch.stack(ys, 1)], [want], 1e-12)
    assert torch.equal(carried, last)


@each(naive=[()], torch=[()], cpp=[()])
def test_the_state_of_a_short_document_does_not_see_the_one_before_it(backend):
    x, weight, bias, _ = (t.float() for t in Conv(1, 20, 3, 4).operands())
    ids = (torch.arange(20) >= 18).long()[None]
    _, last = causal_conv1d(x, weight, bias, segment_ids_BL=ids, return_final_state=True, backend=backend)
    assert torch.equal(last[:, :, 0], torch.zeros(1, 3))
    assert torch.equal(last[:, :, 1:], x[:, -2:].transpose(1, 2))


@needs_compiler
def test_a_nan_of_another_document_stays_there():
    x, weight, bias, _ = (t.float() for t in Conv(1, 40, 18, 4).operands())
    x[0, 19] = torch.nan
    y = causal_conv1d(x, weight, bias, segment_ids_BL=(torch.arange(40) >= 20).long()[None], backend="cpp")
    assert y[0, 19].isnan().all()
    assert torch.isfinite(y[0, 20:]).all()
    assert torch.isfinite(y[0, :19]).all()


def test_identity_weights_return_the_input():
    x = Conv(2, 11, 3, 4).operands()[0]
    weight = torch.zeros(3, 4, dtype=x.dtype)
    weight[:, -1] = 1
    assert torch.equal(causal_conv1d(x, weight), x)


@needs_compiler
def test_threads_do_not_change_a_bit():
    case, before, found = Conv(2, 700, 20, 4), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values, grads = results(case.call, "cpp", case.operands(), torch.float32)
            found.append(values + grads)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_half_precision_inputs_are_summed_in_float32():
    x = torch.full((1, 4, 1), 1.0, dtype=torch.bfloat16)
    x[:, 0] = 256.0
    weight = torch.ones(1, 4, dtype=torch.bfloat16)
    assert causal_conv1d(x, weight)[0, 3, 0].item() == torch.tensor(259.0).bfloat16().item()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 3), (4, 4), None, None), r"weight has shape \[4, 4\], want \[3, 4\]"),
        (((2, 5, 3), (3, 4), (4,), None), "bias has shape"),
        (((2, 5, 3), (3, 4), None, (2, 3, 4)), r"initial_state has shape \[2, 3, 4\], want \[2, 3, 3\]"),
        (((2, 5), (3, 4), None, None), r"want x \[B, L, C\]"),
        (((2, 5, 3), (3, 0), None, None), "K >= 1"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    x, weight, bias, state = (None if s is None else torch.zeros(s) for s in shapes)
    with pytest.raises(UsageError, match=message):
        causal_conv1d(x, weight, bias, initial_state_BCJ=state)
