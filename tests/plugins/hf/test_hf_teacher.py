"""Taps against an eager forward, documents in a row, early stop, memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.hf.hf_models import (
    LAYERS,
    NAMES,
    batch,
    own_module,
    probabilities,
    reference,
    relative,
    saved,
    teacher,
)
from xarch import Batch, UsageError
from xarch_decoder.copying import copy_trunk
from xarch_decoder.factored import AttentionFactors, FactoredLogits
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_tap_is_the_models_own_value(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    made = teacher(tmp_path)
    data = batch()
    wanted = reference(model, data["input_ids"])
    order: list[str] = []
    seen: dict[str, Any] = {}

    def sink(tap: str, value: Any) -> None:
        order.append(tap)
        seen[tap] = value

    made.run(data, list(made.taps()), sink)
    assert order == list(made.taps())
    assert set(order) == set(wanted)
    for tap, value in seen.items():
        if isinstance(value, AttentionFactors):
            value = probabilities(value)
        elif isinstance(value, FactoredLogits):
            value = value.full()
        assert relative(value, wanted[tap]) < 1e-5, tap


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_values_have_the_declared_layout(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    made = teacher(tmp_path)
    data = batch(2, 7)
    for tap, value in made.collect(data, list(made.taps())).items():
        declared = made.taps()[tap]
        if declared.kind == "hidden":
            sizes = {"B": 2, "L": 7, **declared.shape}
            assert tuple(value.shape) == tuple(sizes[letter] for letter in declared.layout), tap
        elif declared.kind == "matrix":
            assert value.q_BLHE.shape[:3] == (2, 7, declared.shape["H"])
            assert value.window == made.facts.window(int(tap.split(".")[1]))
            assert value.scale == made.facts.scale
        else:
            assert value.full().shape == (2, 7, declared.shape["V"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_packed_documents_are_separate_documents(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    made = teacher(tmp_path)
    segments = torch.tensor([[0] * 7 + [1] * 1 + [2] * 11, [0] * 19])
    data = batch(segments=segments)
    packed = made.collect(data, list(made.taps()))
    for row, start, stop in ((0, 0, 7), (0, 7, 8), (0, 8, 19), (1, 0, 19)):
        alone = made.collect(Batch({"input_ids": data["input_ids"][row : row + 1, start:stop]}, 1), list(made.taps()))
        for tap, value in packed.items():
            if isinstance(value, AttentionFactors):
                whole = probabilities(value)[row : row + 1, :, start:stop]
                assert float(whole[..., :start].sum()) == 0
                assert float(whole[..., stop:].sum()) == 0
                assert relative(whole[..., start:stop], probabilities(alone[tap])) < 1e-5, tap
                continue
            if isinstance(value, FactoredLogits):
                value, expected = value.full(), alone[tap].full()
            else:
                expected = alone[tap]
            assert relative(value[row : row + 1, start:stop], expected) < 1e-5, tap


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_family_rebuilds_the_model_from_facts_and_canonical_weights(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    made = teacher(tmp_path)
    rebuilt = DecoderStudent(made.facts, [[Attention]] * made.facts.layers)
    copy_trunk(rebuilt, made)
    data = batch(2, 40)
    seen = rebuilt.collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-4


@pytest.mark.parametrize("leaf", ["input", "mixer_in", "matrix", "values", "heads", "mixer_out", "output"])
@torch.no_grad()
def test_nothing_runs_after_the_last_wanted_tap(leaf: str, tmp_path: Path) -> None:
    model_type = "llama"
    saved(model_type, tmp_path)
    made = teacher(tmp_path)
    ran: list[str] = []
    for layer in range(LAYERS):
        for part in ("norm1", "attention.q", "attention.o", "mlp.down"):
            module = own_module(made.module, f"blocks.{{i}}.{part}", layer)
            module.register_forward_hook(lambda *_, name=f"{layer}.{part}": ran.append(name))
    own_module(made.module, "head").register_forward_hook(lambda *_: ran.append("head"))
    values = made.collect(batch(), ["blocks.0.mixer_out", f"blocks.1.{leaf}"])
    assert set(values) == {"blocks.0.mixer_out", f"blocks.1.{leaf}"}
    parts = ["norm1", "attention.q", "attention.o", "mlp.down"]
    done = {"input": 0, "mixer_in": 1, "matrix": 2, "values": 2, "heads": 2, "mixer_out": 3, "output": 4}[leaf]
    # A hook of the teacher that ends the run comes after the counting one of the same module, which was there first.
    assert ran == [f"0.{p}" for p in parts] + [f"1.{p}" for p in parts[:done]]


@torch.no_grad()
def test_logits_never_run_the_output_projection(tmp_path: Path) -> None:
    saved("phi", tmp_path)
    made = teacher(tmp_path)
    ran: list[str] = []
    own_module(made.module, "head").register_forward_hook(lambda *_: ran.append("head"))
    value = made.collect(batch(), ["logits"])["logits"]
    assert ran == []
    assert value.bias_V is not None
    assert value.weight_VD.shape == (61, 32)


@torch.no_grad()
def test_logits_are_stored_as_hidden_states(tmp_path: Path) -> None:
    """encdec W21: a cache keeps D numbers a token, and makes the same logits of them again."""
    saved("phi", tmp_path)
    made, given = teacher(tmp_path), batch()
    value = made.collect(given, ["logits"])["logits"]
    stored = made.packed("logits", value)
    samples, length = given["input_ids"].shape
    assert stored.numel() == samples * (made.taps()["logits"].elements({"L": length}) or 0)
    assert torch.equal(made.unpacked("logits", stored).full(), value.full())


@torch.no_grad()
def test_values_are_free_as_soon_as_the_receiver_drops_them(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    made = teacher(tmp_path)
    alive: dict[str, weakref.ref[Tensor]] = {}
    at_layer_2: list[str] = []

    def sink(tap: str, value: Any) -> None:
        if tap == "blocks.2.mixer_in":
            gc.collect()
            at_layer_2.extend(name for name, ref in alive.items() if ref() is not None)
        if tap.startswith("blocks.0.") or tap.startswith("blocks.1."):
            alive[tap] = weakref.ref(value.q_BLHE if isinstance(value, AttentionFactors) else value)

    made.run(batch(), [t for t in made.taps() if t.startswith("blocks.")], sink)
    assert len(alive) == 14
    # transformers' own forward holds the embedded tokens, and block 2 works on what block 1 left.
    assert set(at_layer_2) <= {"blocks.0.input", "blocks.1.output"}


@torch.no_grad()
def test_a_run_leaves_no_trace_on_the_module(tmp_path: Path) -> None:
    model = saved("qwen3", tmp_path)
    made = teacher(tmp_path)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.module.modules())

    def broken(tap: str, value: Any) -> None:
        raise RuntimeError(tap)

    before = hooks()
    with pytest.raises(RuntimeError, match=r"blocks\.1\.matrix"):
        made.run(batch(), ["blocks.1.matrix", "logits"], broken)
    made.collect(batch(), ["blocks.1.matrix"])
    assert hooks() == before
    ids = batch()["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    plain = made.module(ids, attention_mask=mask).logits
    assert relative(plain[0, 4:], model(ids, attention_mask=mask).logits[0, 4:]) < 1e-5


def test_teachers_are_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    saved("gpt_neox", tmp_path)
    made = teacher(tmp_path)
    assert not made.module.training
    assert not any(p.requires_grad for p in made.module.parameters())
    value = made.collect(batch(), ["blocks.2.output"])["blocks.2.output"]
    assert not value.requires_grad


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    made = teacher(tmp_path)
    with pytest.raises(UsageError, match=r"no tap blocks\.9\.output"):
        made.collect(batch(), ["blocks.9.output"])
    with pytest.raises(UsageError, match="input_ids"):
        made.collect(Batch({"pixels": torch.zeros(1, 3)}, 1), ["logits"])
    assert made.collect(batch(), []) == {}
