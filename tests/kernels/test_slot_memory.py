"""Slot memory: every backend against the definition entry by entry, in pieces and over documents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from agreement import assert_close, each, source
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels import MemoryLayout, Rotary, slot_memory, slot_memory_state
from xarch.kernels.slot_memory import plain

ROTARY = Rotary((1.0, 0.5, 0.1), scale=0.35)
SMALL = MemoryLayout(2, 5, 4)
HEADS = 2


@dataclass(frozen=True)
class Memory:
    layout: MemoryLayout
    length: int = 47
    restart: int = 30
    rotary: Rotary = ROTARY
    width: int = 8

    def operands(self) -> list[Tensor]:
        draw = source()
        keys_values = [draw(2, self.length, HEADS, self.width) for _ in "kv"]
        return [2 * draw(2, self.length, 2 * HEADS, self.width), *keys_values]

    def positions(self) -> Tensor:
        second = torch.cat([torch.arange(self.restart), torch.arange(self.length - self.restart)])
        return torch.stack([torch.arange(self.length), second])

    def call(self, backend: str, *t: Tensor, cut: slice = slice(None), state: Any = None) -> Any:
        t = tuple(x[:, cut] for x in t)
        return slot_memory(
            *t,
            self.positions()[:, cut],
            self.layout,
            self.rotary,
            state=state,
            return_final_state=True,
            backend=backend,
        )


CASES = [
    Memory(SMALL),
    Memory(replace(SMALL, exact="int8", age=0, decay=1.0)),
    Memory(replace(SMALL, exact="float16", stored="float16", age=2)),
    Memory(replace(SMALL, window=9, sinks=0)),
    Memory(replace(SMALL, slots=0, exact="int8")),
    Memory(SMALL, rotary=Rotary((0.7,), gain=1.2, scale=0.35, softcap=5.0), length=33, restart=1),
    Memory(MemoryLayout(0, 1, 1, age=0, decay=0.5), length=17, width=5, restart=16, rotary=Rotary((0.5,), scale=0.4)),
]


@each("case", torch=CASES, cpp=CASES)
def test_values_in_one_call_and_in_pieces(backend, case):
    dtype, limit = (torch.float64, 1e-12) if backend == "torch" else (torch.float32, 2e-5)
    wanted, _ = case.call("naive", *case.operands())
    operands = [t.to(dtype) for t in case.operands()]
    whole, last = case.call(backend, *operands)
    assert_close([whole], [wanted], limit)
    for name in (backend, "naive") if backend == "torch" else (backend,):
        given = case.operands() if name == "naive" else operands
        ys, state = [], None
        for start, stop in itertools.pairwise((0, 1, 2, 9, 9, min(30, case.length - 1), case.length - 1, case.length)):
            y, state = case.call(name, *given, cut=slice(start, stop), state=state)
            ys.append(y)
        assert_close([torch.cat(ys, 1)], [wanted], limit)
    assert [t.shape for t in state] == [t.shape for t in last]


@pytest.mark.parametrize("tokens", [1, 7])
def test_chunks_of_any_size_give_the_same(monkeypatch, tokens):
    case = Memory(replace(SMALL, exact="int8", stored="float16"))
    wanted, last = case.call("torch", *case.operands())
    monkeypatch.setattr(plain, "TOKENS", tokens)
    found, after = case.call("torch", *case.operands())
    assert_close([found], [wanted], 1e-12)
    assert_close([t.double() for t in after], [t.double() for t in last], 1e-12)


@each(torch=[()], cpp=[()], naive=[()])
def test_the_past_does_not_see_the_future_nor_another_document(backend):
    case = Memory(SMALL)
    operands = [t.float() for t in case.operands()]
    before, _ = case.call(backend, *operands)
    changed = [torch.cat([t[:, :30], t[:, 30:] + 1.0], 1) for t in operands]
    after, _ = case.call(backend, *changed)
    assert torch.equal(before[:, :30], after[:, :30])
    changed = [torch.cat([t[:, :30] + 1.0, t[:, 30:]], 1) for t in operands]
    after, _ = case.call(backend, *changed)
    assert torch.equal(before[1, 30:], after[1, 30:])
    assert not torch.allclose(before[0, 30:], after[0, 30:])


@each("layout", cpp=[MemoryLayout(2, 64), MemoryLayout(4, 20, 50)])
def test_a_memory_that_holds_everything_is_attention(backend, layout):
    case = Memory(layout, restart=46)
    q, k, v = (t.float() for t in case.operands())
    found, _ = case.call(backend, q, k, v)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True, scale=ROTARY.scale, enable_gqa=True
    )
    assert_close([found[0]], [wanted.transpose(1, 2)[0]], 1e-5)


def test_gradients_pass_through_slots():
    case = Memory(MemoryLayout(1, 2, 2, age=0), length=9, restart=8, width=4, rotary=Rotary((0.5,), scale=0.5))
    leaves = [t.requires_grad_() for t in case.operands()]
    assert torch.autograd.gradcheck(lambda *t: case.call("torch", *t)[0], leaves, fast_mode=True)
    y, _ = slot_memory(*leaves, case.positions(), case.layout, case.rotary, return_final_state=True)
    assert y.requires_grad


def test_bytes_are_those_of_the_tensors():
    for layout in (SMALL, replace(SMALL, exact="int8", stored="float16"), replace(SMALL, slots=0)):
        state = slot_memory_state(layout, 1, HEADS, 8)
        assert layout.bytes(HEADS, 8) == sum(t.numel() * t.element_size() for t in state)
        assert len(state) == len(layout.state(HEADS, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: MemoryLayout(1, 0, 1), "window >= 1"),
        (lambda: MemoryLayout(1, 2, 1, exact="int4"), "exact is 'int4'"),
        (
            lambda: Memory(SMALL).call("torch", *(t[:, :, :3] for t in Memory(SMALL).operands())),
            "3 heads cannot",
        ),
        (lambda: Memory(SMALL).call("torch", *Memory(SMALL).operands(), state=(torch.zeros(1),)), "state has shapes"),
    ],
)
def test_wrong_sizes_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        change()
