"""Decoders rebuilt from their facts, and the modules of theirs that may be replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.plugins.mohawk.mohawk_models import make_teacher, tiny_facts
from xarch import rebuilder
from xarch_decoder.testing import token_batch


@pytest.mark.parametrize("mlp", ["gated", "plain"])
def test_a_rebuilt_decoder_is_the_teacher_and_its_parts_are_its_layers(mlp):
    facts = replace(tiny_facts(layers=2), mlp=mlp)
    teacher = make_teacher(facts)
    adapter, options = rebuilder(facts)
    student = adapter.build(facts, options, {}, device=torch.device("cpu"))
    adapter.initialise(student, teacher)
    batch = token_batch(facts.vocab, 2, 9)
    with torch.no_grad():
        one, two = (model.collect(batch, {"final"})["final"] for model in (teacher, student))
    assert torch.allclose(one, two, atol=1e-5)
    parts = student.replaceable()
    assert [part.kind for part in parts] == ["q", "k", "v", "o", "mlp"] * 2
    x = torch.randn(3, facts.width)
    for part in (part for part in parts if part.kind == "mlp"):
        module = student.module.get_submodule(part.path)
        read = [module.get_submodule(layer)(x) for layer in part.into]
        assert torch.equal(module.get_submodule(part.out)(part.activation(*read)), module(x))


def test_other_mixers_have_no_projections_to_replace():
    from functools import partial

    from xarch.kernels import MemoryLayout
    from xarch_decoder.model.memory import MemoryAttention
    from xarch_decoder.student import DecoderStudent

    facts = tiny_facts(layers=2)
    memory = partial(MemoryAttention, layout=MemoryLayout(1, 4, 2))
    student = DecoderStudent(facts, [[memory], [memory]], device="meta")
    assert [part.kind for part in student.replaceable()] == ["mlp", "mlp"]
