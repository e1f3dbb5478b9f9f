"""Causal convolution: every form against torch's own convolution and against autograd."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import causal_conv1d, causal_conv1d_step


def make(batch: int, length: int, channels: int, taps: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return randn(batch, length, channels), randn(channels, taps), randn(channels), randn(batch, channels, taps - 1)


@pytest.mark.parametrize("backend", ["naive", "torch"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 100])
def test_equals_torch_convolution(length, dtype, limit, backend, error):
    x, weight, bias, state = make(2, length, 6, 4, dtype=dtype)
    y, last = causal_conv1d(x, weight, bias, initial_state_BCJ=state, return_final_state=True, backend=backend)
    extended = torch.cat([state, x.transpose(1, 2)], 2).double()
    want = F.conv1d(extended, weight.double()[:, None], bias.double(), groups=6).transpose(1, 2)
    assert y.dtype == dtype
    assert error(y, want) <= limit
    assert torch.equal(last.double(), extended[:, :, -3:])
    unaided = causal_conv1d(x, weight, backend=backend)
    want = F.conv1d(F.pad(x.double().transpose(1, 2), (3, 0)), weight.double()[:, None], groups=6).transpose(1, 2)
    assert error(unaided, want) <= limit


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 30),
    channels=st.integers(1, 5),
    taps=st.integers(1, 6),
    biased=st.booleans(),
    stateful=st.booleans(),
    segmented=st.booleans(),
    cache=st.sampled_from([1, 1 << 16]),
    seed=st.integers(0, 1000),
)
def test_any_shape(error, batch, length, channels, taps, biased, stateful, segmented, cache, seed):
    x, weight, bias, state = make(batch, length, channels, taps, seed)
    generator = torch.Generator().manual_seed(seed)
    segments = torch.randint(0, 2, (batch, length), generator=generator) if segmented else None
    blocked = importlib.import_module("xarch.kernels.causal_conv1d.plain")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "_CACHE_ELEMENTS", cache)
        for backend in ("naive", "torch"):
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias, state)]
            out = causal_conv1d(
                leaves[0],
                leaves[1],
                leaves[2] if biased else None,
                initial_state_BCJ=leaves[3] if stateful else None,
                segment_ids_BL=segments,
                return_final_state=True,
                backend=backend,
            )
            loss = sum(t.square().sum() + t.sum() for t in out)
            found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            results.append((*out, *found))
    for truth, value in zip(*results, strict=True):
        assert error(value, truth) <= 1e-11


@pytest.mark.parametrize("stateful", [False, True])
def test_gradcheck(stateful):
    x, weight, bias, state = (t.requires_grad_() for t in make(2, 7, 2, 3))
    segments = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])

    def run(x, weight, bias, state):
        return causal_conv1d(
            x,
            weight,
            bias,
            initial_state_BCJ=state if stateful else None,
            segment_ids_BL=segments,
            return_final_state=True,
            backend="torch",
        )

    assert torch.autograd.gradcheck(run, (x, weight, bias, state))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 20), max_size=6), backend=st.sampled_from(["naive", "torch"]))
def test_pieces_and_steps_equal_the_whole(error, cuts, backend):
    x, weight, bias, state = make(2, 20, 3, 4)
    want, last_want = causal_conv1d(x, weight, bias, initial_state_BCJ=state, return_final_state=True, backend="naive")
    edges = [0, *sorted(cuts), 20]
    ys, carried = [], state
    for start, stop in itertools.pairwise(edges):
        y, carried = causal_conv1d(
            x[:, start:stop], weight, bias, initial_state_BCJ=carried, return_final_state=True, backend=backend
        )
        ys.append(y)
    assert error(torch.cat(ys, 1), want) <= 1e-12
    assert torch.equal(carried, last_want)
    ys, carried = [], state
    for t in range(20):
        y, carried = causal_conv1d_step(x[:, t], weight, bias, carried)
        ys.append(y)
    assert error(torch.stack(ys, 1), want) <= 1e-12
    assert torch.equal(carried, last_want)


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_packed_documents_equal_separate_calls(backend, error):
    x, weight, bias, _ = make(1, 20, 3, 4)
    lengths = [1, 2, 9, 6, 2]
    segments = torch.repeat_interleave(torch.tensor([7, 0, 7, 0, 1]), torch.tensor(lengths))[None]
    packed, last = causal_conv1d(x, weight, bias, segment_ids_BL=segments, return_final_state=True, backend=backend)
    parts = [causal_conv1d(part, weight, bias, backend="naive") for part in x.split(lengths, 1)]
    assert error(packed, torch.cat(parts, 1)) <= 1e-12
    # The next token of the last document, two tokens long so far, must not see the document before it.
    assert torch.equal(last[:, :, 0], torch.zeros(1, 3, dtype=x.dtype))
    assert torch.equal(last[:, :, 1:], x[:, -2:].transpose(1, 2))


def test_identity_weights_return_the_input():
    x = make(2, 11, 3, 4)[0]
    weight = torch.zeros(3, 4, dtype=x.dtype)
    weight[:, -1] = 1
    assert torch.equal(causal_conv1d(x, weight), x)


def test_strides_do_not_matter(error):
    x, weight, bias, state = make(2, 20, 3, 4)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, state)]
    strided = [
        x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        weight.t().contiguous().t().requires_grad_(),
        bias.expand(2, -1)[0].requires_grad_(),
        state.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
    ]
    assert not strided[0].is_contiguous()
    upstream = torch.randn(3, 20, 2, dtype=x.dtype).permute(2, 1, 0)
    results = []
    for tensors in (leaves, strided):
        y = causal_conv1d(*tensors[:3], initial_state_BCJ=tensors[3], backend="torch")
        results.append((y, *torch.autograd.grad(y, tensors, upstream)))
    for truth, value in zip(*results, strict=True):
        assert error(value, truth) <= 1e-12


def test_half_precision_inputs_are_summed_in_float32():
    x = torch.full((1, 4, 1), 1.0, dtype=torch.bfloat16)
    x[:, 0] = 256.0
    weight = torch.ones(1, 4, dtype=torch.bfloat16)
    assert causal_conv1d(x, weight)[0, 3, 0].item() == torch.tensor(259.0).bfloat16().item()


def test_autocast_does_not_reach_the_sum():
    x, weight, bias, _ = make(1, 9, 3, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = causal_conv1d(x, weight, bias)
    assert torch.equal(got, causal_conv1d(x, weight, bias))


def test_shapes_without_memory():
    x, weight, bias, state = (t.to("meta") for t in make(2, 9, 3, 4))
    y, last = causal_conv1d(x, weight, bias, initial_state_BCJ=state, return_final_state=True)
    assert y.shape == x.shape
    assert last.shape == state.shape


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
