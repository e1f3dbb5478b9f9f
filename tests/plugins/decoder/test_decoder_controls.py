"""Controls of decoder students: what they keep, what it costs, and that they are the teacher otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.plugins.decoder.decoder_models import EMA, tiny_facts
from xarch import PlanError
from xarch.kernels import MemoryLayout, Rotary, slot_memory
from xarch_decoder.controls import (
    SINKS,
    bounded_teacher,
    decoder_controls,
    eviction_layout,
    heavy_hitter_layout,
    window_layout,
)
from xarch_decoder.family import DecoderFamily
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.memory import MemoryAttention
from xarch_decoder.student import DecoderStudent
from xarch_decoder.teacher import StudentTeacher
from xarch_decoder.testing import token_batch

FACTS = tiny_facts()


class Wide(EMA):
    """A mixer with 6000 bytes of state."""

    def state_spec(self):  # type: ignore[no-untyped-def]
        return (replace(super().state_spec()[0], shape=(1500,)),)


def teacher(facts=FACTS):
    torch.manual_seed(0)
    return StudentTeacher(DecoderStudent(facts, [[Attention]] * facts.layers), ref="tiny", fingerprint="0")


def logits(model, batch) -> Tensor:
    return model.collect(batch, ["logits"])["logits"].full()


def test_controls_fit_the_students_bytes():
    student = DecoderStudent(FACTS, [[Attention], [Wide]])
    assert student.state_bytes() == {1: 6000}
    found = DecoderFamily().controls(teacher(), student)
    assert list(found) == [
        "window float32",
        "window float16",
        "window int8",
        "eviction float32",
        "eviction int8 and float16",
        "H2O int8",
    ]
    assert list(DecoderFamily().control_names(student)) == list(found), "the plan counts those that are evaluated"
    # Two key/value heads of 8: 128 bytes a float32 token and head, 32 + 8 with 8 bits and two scales.
    windows = {name: c.model.decoder.block(1).mixer().layout.window for name, c in found.items()}
    assert windows["window float32"] == 6000 // 128 - SINKS
    assert windows["window float16"] == 6000 // 64 - SINKS
    assert windows["window int8"] == 6000 // 48 - SINKS
    for name, control in found.items():
        assert control.facts["state_bytes_a_layer"] <= 6000, name
        assert isinstance(control.model.decoder.block(0).mixer(), Attention)
        assert not isinstance(control.model.decoder.block(0).mixer(), MemoryAttention)
    assert "most attended" in found["eviction float32"].facts["keeps"]
    # Without sums of attention, 24 bytes a token and head: 62 recent and 63 most attended.
    assert found["H2O int8"].facts["keeps"] == "62 recent tokens, 63 most attended"


def test_a_window_is_the_teachers_own():
    given, layout = teacher(), MemoryLayout(0, 5)
    model = bounded_teacher(given, {0: layout, 1: layout})
    assert model.module.embed.weight.data_ptr() == given.decoder.embed.weight.data_ptr()
    batch = token_batch(FACTS.vocab, 2, 30)
    sliding = teacher(tiny_facts(windows=(5, 5)))
    assert torch.allclose(logits(model, batch), logits(sliding, batch), atol=1e-5)
    assert not torch.allclose(logits(model, batch), logits(given, batch), atol=1e-3)


def test_there_are_none_where_nothing_is_constant_or_the_teacher_has_another_form():
    assert decoder_controls(teacher(), DecoderStudent(FACTS, [[Attention]] * 2)) == {}
    other = tiny_facts(mlp_width=40)
    assert decoder_controls(teacher(), DecoderStudent(other, [[Attention], [Wide]])) == {}
    chained = StudentTeacher(DecoderStudent(FACTS, [[Attention], [EMA]]), ref="run", fingerprint="0")
    assert decoder_controls(chained, DecoderStudent(FACTS, [[Attention], [Wide]])) == {}


def test_too_few_bytes_leave_no_control():
    assert window_layout(FACTS, 128 * SINKS, "float32") is None
    assert eviction_layout(FACTS, 132 * (SINKS + 1)) is None
    small = DecoderStudent(FACTS, [[Attention], [EMA]])
    assert "window float32" not in decoder_controls(teacher(), small)


def test_a_memory_continues_as_it_reads():
    layout = MemoryLayout(2, 5, 4, exact="int8", stored="float16")
    model = bounded_teacher(teacher(), {0: layout, 1: layout})
    ids = token_batch(FACTS.vocab, 1, 40)["input_ids"]
    whole = model.decoder(ids)
    states, out, position = model.decoder.initial_states(), [], 0
    assert states[0][0].dtype == torch.int8
    for size in (7, 1, 1, 20, 11):
        logit, states = model.decoder.advance(ids[:, position : position + size], position, states)
        out.append(logit)
        position += size
    assert torch.allclose(torch.cat(out, 1), whole, atol=1e-4)


def test_a_layer_with_a_window_of_its_own_is_no_memory():
    with pytest.raises(PlanError, match="sliding window of 7"):
        bounded_teacher(teacher(tiny_facts(windows=(7, None))), {0: MemoryLayout(2, 5)})


def test_heavy_hitters_leave_as_in_the_paper():
    """Against H2O written token by token for `benchmarks/cache_schemes.py`, which makes room after it has read."""
    from benchmarks.cache_schemes import Cache

    torch.manual_seed(0)
    cache, scale = Cache(2, 8, places=10), 0.35
    exact = heavy_hitter_layout(tiny_facts(), 2 * 11 * 24)
    assert exact is not None
    layout = replace(exact, exact="float32", window=cache.recent + 1, slots=10 - cache.recent)
    q, k, v = torch.randn(1, 60, 4, 8) * 3, torch.randn(1, 60, 2, 8), torch.randn(1, 60, 2, 8)
    found = slot_memory(q, k, v, torch.arange(60)[None], layout, Rotary((), scale=scale))
    for t in range(60):
        read = cache.read(q[0, t].unflatten(0, (2, 2)), k[0, t], v[0, t], scale)
        assert torch.allclose(found[0, t], read.flatten(0, 1), atol=1e-5), t
