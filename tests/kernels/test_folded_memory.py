"""The folded memory: the fast form, the state and the fold against the definition."""

from __future__ import annotations

import pytest
import torch
from agreement import needs_compiler
from torch import Tensor

from xarch import UsageError
from xarch.kernels import (
    FoldedLayout,
    FoldedRanges,
    Rotary,
    fold_memory,
    folded_memory,
    folded_memory_state,
    folded_memory_step,
)

ROTARY = Rotary(tuple(0.5**i for i in range(4)), scale=0.35)
SMALL = FoldedLayout((6, 9), (4, 5), fold=4, sinks=2, precision="float32")
LAYOUTS = {
    "float32": SMALL,
    "int8": FoldedLayout((6, 9), (4, 5), fold=4, sinks=2, precision="int8"),
    "no sinks": FoldedLayout((1, 3), (2, 4), fold=2, sinks=0, precision="float32", cap=0.3),
    "one by one": FoldedLayout((5, 4), (3, 1), fold=1, sinks=3, precision="float32", decay=0.9),
    "many fold": FoldedLayout((3, 4), (7, 8), fold=7, sinks=2, precision="int8"),
    "one token beside the first": FoldedLayout((3,) * 2, (4,) * 2, fold=4, sinks=2, precision="float32"),
}


def operands(length: int, seed: int = 0, batch: int = 2, heads: int = 4, kept: int = 2) -> tuple[Tensor, ...]:
    made = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, heads, 8), (batch, length, kept, 8), (batch, length, kept, 8))
    return tuple(torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes)


def ranges(kept: int = 2, group: int = 2) -> FoldedRanges:
    made = torch.Generator().manual_seed(9)
    key, value = (0.02 + 0.02 * torch.rand(kept, 8, generator=made, dtype=torch.float64) for _ in range(2))
    return FoldedRanges(key, value, 4.0 + 8.0 * torch.rand(kept, group, generator=made, dtype=torch.float64))


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).expand(x.shape[:2])


def turned(q: Tensor, k: Tensor, rotary: Rotary = ROTARY) -> tuple[Tensor, Tensor]:
    at = places(q)[:, :, None]
    return rotary.turn(q, at.expand(q.shape[:3])), rotary.turn(k, at.expand(k.shape[:3]))


CAPPED = Rotary(ROTARY.frequencies[:2], gain=1.3, scale=0.2, softcap=3.0)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("length", [1, 3, 41])
def test_fast_form_is_the_definition(name: str, length: int) -> None:
    q, k, v = operands(length)
    q, k = turned(q, k)
    found, wanted = (
        folded_memory(q, k, v, places(q), LAYOUTS[name], ROTARY, ranges(), backend=backend)
        for backend in ("torch", "naive")
    )
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("length", "rotary"), [(1, ROTARY), (77, ROTARY), (41, CAPPED)])
def test_compiled_form_is_the_definition(name: str, length: int, rotary: Rotary) -> None:
    q, k, v = operands(length)
    q, k = turned(q, k, rotary)
    wanted = folded_memory(q, k, v, places(q), LAYOUTS[name], rotary, ranges(), backend="naive")
    single = FoldedRanges(*(t.float() for t in ranges()))
    given = [x.float() for x in (q, k, v)]
    found = folded_memory(*given, places(q), LAYOUTS[name], rotary, single, backend="cpp")
    assert torch.allclose(found.double(), wanted, rtol=0, atol=1e-5)


@needs_compiler
def test_compiled_form_ends_with_operands_that_are_no_numbers() -> None:
    given = [x.float() for x in operands(60)]
    given[1][0, 20] = float("nan")
    own = FoldedRanges(*(t.float() for t in ranges()))
    found = folded_memory(*given, places(given[0]), SMALL, ROTARY, own, backend="cpp")
    assert found[0, :20].isfinite().all()
    assert found[0, 20:].isnan().any()
    assert found[1].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("width", [5, 24])
def test_compiled_form_of_any_width(width: int) -> None:
    made = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 50, n, width, generator=made) for n in (3, 1, 1))
    rotary, layout = Rotary((0.7, 0.2), scale=0.4), FoldedLayout((30,), (8,), fold=8, sinks=3, precision="float32")
    own = FoldedRanges(torch.ones(1, width), torch.ones(1, width), torch.full((1, 3), 2.0))
    found, wanted = (
        folded_memory(q, k, v, places(q), layout, rotary, own, backend=backend) for backend in ("cpp", "naive")
    )
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


def test_it_is_attention_until_something_is_merged() -> None:
    q, k, v = operands(12)
    q, k = turned(q, k)
    found = folded_memory(q, k, v, places(q), SMALL, ROTARY, ranges())
    shared_q = q.transpose(1, 2).unflatten(1, (2, 2))
    scores = 0.35 * shared_q @ k.transpose(1, 2)[:, :, None].mT
    scores = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), float("-inf"))
    wanted = (scores.softmax(-1) @ v.transpose(1, 2)[:, :, None]).flatten(1, 2).transpose(1, 2)
    assert torch.allclose(found[:, :10], wanted[:, :10], rtol=0, atol=1e-12)
    later = folded_memory(*turned(*operands(41)[:2]), operands(41)[2], places(operands(41)[0]), SMALL, ROTARY, ranges())
    assert torch.isfinite(later).all()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rotary", [ROTARY, CAPPED])
def test_state_gives_what_whole_sequences_give(name: str, rotary: Rotary) -> None:
    layout, (q, k, v) = LAYOUTS[name], operands(41)
    q_at, k_at = turned(q, k, rotary)
    wanted = folded_memory(q_at, k_at, v, places(q), layout, rotary, ranges())
    state = folded_memory_state(layout, 2, 8, 2, dtype=torch.float64)
    found, position = [], 0
    # several tokens at once, then single ones, as a device reads a prompt and goes on
    for size in [layout.fold] * 2 + [1] * (41 - 2 * layout.fold):
        at = torch.full((2,), position)
        if position % layout.fold == 0:
            state = fold_memory(at, layout, rotary, ranges(), state)
        cut = slice(position, position + size)
        given = (q_at[:, cut], k_at[:, cut], v[:, cut], places(q)[:, cut])
        heads, state = folded_memory_step(*given, layout, rotary, ranges(), state)
        found.append(heads)
        position += size
    assert torch.allclose(torch.cat(found, 1), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_one_by_one_leave_the_state_that_they_leave_together(name: str) -> None:
    layout, (q, k, v) = LAYOUTS[name], operands(42)
    q, k = turned(q, k)
    states = []
    for size in (layout.fold, 1):
        state = folded_memory_state(layout, 2, 8, 2, dtype=torch.float64)
        for begin in range(0, 42 // layout.fold * layout.fold, size):
            if begin % layout.fold == 0:
                state = fold_memory(torch.tensor([begin]), layout, ROTARY, ranges(), state)
            given = [x[:, begin : begin + size] for x in (q, k, v, places(q))]
            _, state = folded_memory_step(*given, layout, ROTARY, ranges(), state)
        states.append(state)
    for part, together, alone in zip(layout.state(8, 2), *states, strict=True):
        assert torch.allclose(together.double(), alone.double(), rtol=0, atol=1e-9), part


def test_a_fold_before_the_first_token_changes_nothing() -> None:
    state = folded_memory_state(SMALL, 1, 8, 2)
    after = fold_memory(torch.zeros(1), SMALL, ROTARY, FoldedRanges(*(t.float() for t in ranges())), state)
    for name, before, now in zip(SMALL.state(8, 2), state, after, strict=True):
        if name == "bias":
            for row, own in enumerate(SMALL.entries):
                kept = [i for i in range(before.shape[-1]) if not own - SMALL.fold <= i < own]
                assert torch.equal(before[row][..., kept], now[row][..., kept])
        elif name != "importance":
            assert torch.equal(before, now), name


def test_gradients_are_those_of_the_definition() -> None:
    given = [t.requires_grad_() for t in operands(23, batch=1)]
    weight = torch.randn(1, 23, 4, 8, dtype=torch.float64)
    grads = []
    for backend in ("torch", "naive"):
        q, k = turned(given[0], given[1])
        out = folded_memory(q, k, given[2], places(q), LAYOUTS["int8"], ROTARY, ranges(), backend=backend)
        grads.append(torch.autograd.grad((out * weight).sum(), given))
    for found, wanted in zip(*grads, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-8)
        assert float(found.abs().max()) > 0


def test_documents_of_a_row_do_not_see_each_other() -> None:
    q, k, v = operands(30)
    at = torch.stack([torch.cat([torch.arange(13), torch.arange(17)]), torch.arange(30)])
    q_at, k_at = (ROTARY.turn(x, at[:, :, None].expand(x.shape[:3])) for x in (q, k))
    found = folded_memory(q_at, k_at, v, at, SMALL, ROTARY, ranges())
    alone = folded_memory(q_at[:1, 13:], k_at[:1, 13:], v[:1, 13:], at[:1, 13:], SMALL, ROTARY, ranges())
    assert torch.allclose(found[:1, 13:], alone, rtol=0, atol=1e-12)
    other = folded_memory(q_at[1:], k_at[1:], v[1:], at[1:], SMALL, ROTARY, ranges())
    assert torch.allclose(found[1:], other, rtol=0, atol=1e-12)


def test_what_was_rounded_once_is_not_rounded_again() -> None:
    layout, (q, k, v) = LAYOUTS["int8"], operands(40, batch=1)
    state = folded_memory_state(layout, 1, 8, 2, dtype=torch.float64)
    q, k = turned(q, k)
    for begin in range(0, 40, 4):
        state = fold_memory(torch.full((1,), begin), layout, ROTARY, ranges(), state)
        given = [x[:, begin : begin + 4] for x in (q, k, v, places(q))]
        _, state = folded_memory_step(*given, layout, ROTARY, ranges(), state)
    names = list(layout.state(8, 2))
    before = dict(zip(names, state, strict=True))
    after = dict(zip(names, fold_memory(torch.full((1,), 40), layout, ROTARY, ranges(), state), strict=True))
    for j, entries in enumerate(layout.entries):
        counts = [int(n) for n in before["facts"][j, 0]]
        assert max(counts) > 1
        old, new = ({tuple(row) for row in held["keys"][j, 0, :entries].tolist()} for held in (before, after))
        assert len(old & new) >= entries - layout.fold - layout.fold


def test_bytes_are_those_of_the_state() -> None:
    layout = LAYOUTS["int8"]
    state = folded_memory_state(layout, 1, 8, 2)
    padding = sum(t.padding * t.dtype.itemsize for t in layout.state(8, 2).values())
    assert layout.bytes(8, 2) == sum(t.numel() * t.element_size() for t in state) - padding
    alone = [FoldedLayout((n,), (w,), fold=4, sinks=2) for n, w in zip(layout.slots, layout.windows, strict=True)]
    assert layout.bytes(8, 2) == sum(head.bytes(8, 2) for head in alone)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"slots": (2, 9)}, "slots > sinks"),
        ({"windows": (3, 5)}, "windows >= fold"),
        ({"windows": (4,)}, "1 windows"),
        ({"precision": "int4"}, "float32, int8"),
    ],
)
def test_impossible_layouts(wrong: dict[str, object], says: str) -> None:
    given = {"slots": (6, 9), "windows": (4, 5), "fold": 4, "sinks": 2} | wrong
    with pytest.raises(UsageError, match=says):
        FoldedLayout(**given)  # type: ignore[arg-type]


def test_impossible_calls() -> None:
    q, k, v = operands(5)
    with pytest.raises(UsageError, match="first position is 0"):
        folded_memory(q, k, v, places(q) + 1, SMALL, ROTARY, ranges())
    with pytest.raises(UsageError, match="want 1 token or 4, got 5"):
        folded_memory_step(q, k, v, places(q), SMALL, ROTARY, ranges(), folded_memory_state(SMALL, 2, 8, 2))
