"""Taps, sites, decisions, weight transfer and chaining of decoder students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.decoder.decoder_models import EMA, make_student, tiny_facts, tokens
from xarch.contracts.model import Initialisation
from xarch.errors import PlanError
from xarch_decoder.copying import check_initialisation, copy_trunk, merged, trunk_initialisation
from xarch_decoder.factored import AttentionFactors
from xarch_decoder.model.attention import Attention
from xarch_decoder.taps import BLOCK_TAPS, teacher_taps
from xarch_decoder.weights import weight_shapes

BOTH = (EMA, Attention)


def teacher(**changes: Any) -> Any:
    return make_student(tiny_facts(**changes), seed=5).as_teacher("test:teacher", "made")


def test_attention_student_has_the_taps_of_a_teacher() -> None:
    student = make_student(tiny_facts())
    taps = student.taps()
    assert taps == teacher_taps(student.facts)
    assert list(taps)[: len(BLOCK_TAPS)] == [f"blocks.0.{leaf}" for leaf in BLOCK_TAPS]


@torch.no_grad()
@pytest.mark.parametrize("documents", [False, True])
def test_taps_fit_together(documents: bool) -> None:
    student = make_student(tiny_facts(windows=(6, None)), Attention, EMA)
    batch = tokens(student.facts, 2, 19, documents=documents)
    order: list[str] = []
    values: dict[str, Any] = {}

    def sink(name: str, value: Any) -> None:
        order.append(name)
        values[name] = value

    student.run(batch, list(student.taps()), sink)
    assert order == list(student.taps())
    for name, tap in student.taps().items():
        if isinstance(values[name], Tensor):
            sizes = dict(zip(tap.layout, values[name].shape, strict=True))
            assert sizes == {"B": 2, "L": 19, **tap.shape}
    assert torch.equal(values["blocks.0.output"], values["blocks.1.input"])
    logits = student.decoder(batch["input_ids"], batch.get("segment_ids"))
    assert torch.equal(values["logits"].full(), logits)
    block = student.decoder.block(0)
    assert torch.equal(values["blocks.0.mixer_in"], block.norm1(values["blocks.0.input"]))
    mixed = block.mixer().o(values["blocks.0.heads"].flatten(2))
    assert torch.allclose(values["blocks.0.mixer_out"], mixed, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_matrix_factors_give_the_heads(softcap: float | None) -> None:
    student = make_student(tiny_facts(windows=(6, None), softcap=softcap))
    batch = tokens(student.facts, 2, 19, documents=True)
    for layer in range(2):
        names = [f"blocks.{layer}.{leaf}" for leaf in ("matrix", "values", "heads")]
        got = student.collect(batch, names)
        factors, values, heads = (got[n] for n in names)
        assert isinstance(factors, AttentionFactors)
        assert factors.window == (6 if layer == 0 else None)
        scores = factors.scale * torch.einsum("blhe,bshe->bhls", factors.q_BLHE, factors.k_BLKE.repeat_interleave(2, 2))
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        place = torch.arange(19)
        mask = (place[:, None] >= place) & (place[:, None] - place < (factors.window or 99))
        segments = factors.segment_ids_BL
        assert segments is not None
        mask = mask & (segments[:, :, None] == segments[:, None])
        matrix = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        assert torch.allclose(torch.einsum("bhls,bshe->blhe", matrix, values.repeat_interleave(2, 2)), heads, atol=1e-6)


def test_run_ends_after_the_last_wanted_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student(tiny_facts(layers=3), Attention, Attention, EMA)
    batch = tokens(student.facts, 1, 5)
    called: list[str] = []
    for layer in range(3):
        block = student.decoder.block(layer)
        block.mlp.register_forward_hook(lambda *_, layer=layer: called.append(f"mlp.{layer}"))
        block.mixer().register_forward_hook(lambda *_, layer=layer: called.append(f"mixer.{layer}"))
    assert list(student.collect(batch, ["blocks.1.mixer_in"])) == ["blocks.1.mixer_in"]
    assert called == ["mixer.0", "mlp.0"]
    called.clear()
    student.collect(batch, ["blocks.0.input"])
    assert called == []
    student.collect(batch, ["blocks.0.heads", "blocks.0.mixer_out"])
    assert called == []
    student.collect(batch, ["blocks.2.heads"])
    assert called == ["mixer.0", "mlp.0", "mixer.1", "mlp.1"]


@torch.no_grad()
def test_start_in_the_middle_and_other_mixers() -> None:
    student = make_student(tiny_facts(), BOTH, BOTH)
    batch = tokens(student.facts, 2, 11, documents=True)
    every = student.collect(batch, ["blocks.1.input", "blocks.1.output", "final"])
    middle: dict[str, Any] = {}
    student.run(batch, ["final"], middle.__setitem__, start=(1, every["blocks.1.input"]))
    assert torch.equal(middle["final"], every["final"])
    swapped: dict[str, Any] = {}
    wanted = ["blocks.1.matrix", "final"]
    student.run(batch, wanted, swapped.__setitem__, active={1: "attention"})
    assert set(swapped) == set(wanted)
    assert not torch.allclose(swapped["final"], every["final"])
    student.decoder.keep(1, "attention")
    assert torch.equal(student.collect(batch, ["final"])["final"], swapped["final"])


def test_unknown_taps_are_errors() -> None:
    student = make_student(tiny_facts(), EMA, Attention)
    batch = tokens(student.facts, 1, 5)
    with pytest.raises(ValueError, match=r"blocks\.0\.matrix"):
        student.collect(batch, ["blocks.0.matrix"])
    with pytest.raises(ValueError, match="from layer 1 on"):
        student.run(batch, ["blocks.0.output"], print, start=(1, torch.zeros(1, 5, 32)))


@pytest.mark.parametrize("block", ["sequential", "parallel"])
def test_sites_equal_the_full_run(block: str) -> None:
    student = make_student(tiny_facts(block=block), BOTH, Attention)
    batch = tokens(student.facts, 2, 13, documents=True)
    sites = student.sites()
    assert list(sites) == ["blocks.0"]
    assert list(sites["blocks.0"].taps) == ["mixer_in", "heads", "mixer_out", "output"]
    assert sites["blocks.0"].inputs == {"input": "blocks.0.input"}
    full = student.collect(batch, [n for n in student.taps() if n.startswith("blocks.0.")])
    given = {"input": full["blocks.0.input"].detach().double().to(torch.float32)}
    values = student.run_site("blocks.0", given, list(sites["blocks.0"].taps), batch)
    assert set(values) == set(sites["blocks.0"].taps)
    for leaf, value in values.items():
        assert torch.equal(value, full[f"blocks.0.{leaf}"]), leaf
    values["mixer_out"].sum().backward()
    trained = [n for n, p in student.module.named_parameters() if p.grad is not None]
    assert set(student.param_groups()["mixers"]) <= set(trained)
    assert not any(".mlp." in n or "attention" in n for n in trained)
    assert student.run_site("blocks.0", given, ["mixer_out"], batch).keys() == {"mixer_out"}


def test_site_of_a_half_precision_teacher() -> None:
    student = make_student(tiny_facts(), EMA, Attention)
    batch = tokens(student.facts, 1, 7)
    given = {"input": torch.randn(1, 7, 32, dtype=torch.bfloat16)}
    assert student.run_site("blocks.0", given, ["output"], batch)["output"].dtype == torch.float32


def test_groups_cover_everything_once() -> None:
    for tied in (True, False):
        student = make_student(tiny_facts(tied=tied, norm="layer"), BOTH, Attention)
        groups = student.param_groups()
        every = [name for name, _ in student.module.named_parameters()]
        assert groups["all"] == every
        parts = [n for key in ("mixers", "attention", "mlps", "norms", "embedding", "head") for n in groups[key]]
        assert sorted(set(parts)) == sorted(every)
        assert len(parts) == len(every) + tied
        assert groups["mixers"] == ["blocks.0.mixers.ema.logit", "blocks.0.mixers.ema.value.weight"]
        assert groups["head"] == (["embed.weight"] if tied else ["head.weight"])
        assert "norm.bias" in groups["norms"]
        assert {"blocks.0.mixers.ema.logit", "norm.weight"} <= set(student.no_decay())
        assert "blocks.0.mixers.ema.value.weight" not in student.no_decay()


def test_decisions() -> None:
    student = make_student(tiny_facts(layers=3), BOTH, BOTH, Attention)
    student.decide({})
    assert student.replaced == (0, 1)
    student.decide({"layers": [1]})
    kinds = [student.decoder.block(i).kinds for i in range(3)]
    assert kinds == [("attention",), ("ema",), ("attention",)]
    assert list(student.sites()) == ["blocks.1"]
    student.decide({"layers": [1]})
    with pytest.raises(PlanError, match="layer 0 should run a replacement, but has attention"):
        student.decide({"layers": [0, 1]})
    with pytest.raises(PlanError, match="layer 1 should run attention, but has ema"):
        student.decide({"layers": []})
    with pytest.raises(PlanError, match="not layers"):
        student.decide({"layers": [7]})
    with pytest.raises(ValueError, match="heads"):
        student.decide({"heads": 1})


def test_a_failed_decision_changes_nothing() -> None:
    student = make_student(tiny_facts(), BOTH, EMA)
    before = list(student.module.state_dict())
    with pytest.raises(PlanError):
        student.decide({"layers": [0]})
    assert list(student.module.state_dict()) == before


RICH = {"tied": False, "head_bias": True, "norm": "layer", "qkv_bias": True, "qk_norm": True}


@pytest.mark.parametrize("changes", [{}, RICH], ids=["plain", "rich"])
def test_trunk_is_copied_bit_for_bit(changes: dict[str, Any]) -> None:
    source = teacher(**changes)
    student = make_student(source.facts, BOTH, Attention, seed=9)
    initialisation = copy_trunk(student, source)
    assert initialisation == trunk_initialisation(source.facts, student)
    new = Initialisation(new=tuple(student.param_groups()["mixers"]))
    check_initialisation(student, merged(initialisation, new))
    weights = source.weights()
    for name in initialisation.copied:
        assert torch.equal(student.module.get_parameter(name), weights[name.replace("mixers.attention", "attention")])
    kept = make_student(source.facts, seed=9)
    copy_trunk(kept, source)
    batch = tokens(source.facts, 2, 21)
    with torch.no_grad():
        want = source.collect(batch, ["logits"])["logits"].full()
        assert torch.equal(kept.collect(batch, ["logits"])["logits"].full(), want)


def test_coverage_is_strict() -> None:
    student = make_student(tiny_facts(), EMA, Attention)
    trunk = trunk_initialisation(student.facts, student)
    with pytest.raises(PlanError, match=r"not initialised: blocks\.0\.mixers\.ema\.logit"):
        check_initialisation(student, trunk)
    mixers = tuple(student.param_groups()["mixers"])
    with pytest.raises(PlanError, match=r"named twice: embed\.weight"):
        check_initialisation(student, merged(trunk, Initialisation(new=(*mixers, "embed.weight"))))
    with pytest.raises(PlanError, match="not in the student: ghost"):
        check_initialisation(student, merged(trunk, Initialisation(new=(*mixers, "ghost"))))


class _Lacking:
    def __init__(self, source: Any, weights: Mapping[str, Tensor]) -> None:
        self.facts, self._weights = source.facts, weights

    def weights(self) -> Mapping[str, Tensor]:
        return self._weights


def test_missing_or_misshapen_tensors_stop_the_copy() -> None:
    source = teacher()
    student = make_student(source.facts, EMA, Attention, seed=9)
    before = {k: v.clone() for k, v in student.module.state_dict().items()}
    weights = dict(source.weights())
    del weights["blocks.1.attention.k.weight"]
    with pytest.raises(PlanError, match=r"no tensor 'blocks\.1\.attention\.k\.weight'"):
        copy_trunk(student, _Lacking(source, weights))  # type: ignore[arg-type]
    weights = {**source.weights(), "norm.weight": torch.ones(31)}
    with pytest.raises(PlanError, match=r"'norm\.weight' differ: teacher \(31,\), student \(32,\)"):
        copy_trunk(student, _Lacking(source, weights))  # type: ignore[arg-type]
    assert all(torch.equal(before[k], v) for k, v in student.module.state_dict().items())


def test_a_student_is_a_teacher() -> None:
    student = make_student(tiny_facts(), Attention, EMA)
    source = student.as_teacher("run:somewhere", "made")
    assert source.family == "decoder"
    assert not source.module.training
    assert not any(p.requires_grad for p in source.module.parameters())
    names = set(source.weights())
    missing = set(weight_shapes(student.facts)) - names
    assert missing == {f"blocks.1.attention.{p}.weight" for p in "qkvo"}
    assert "blocks.1.mixers.ema.value.weight" in names
    assert source.taps()["blocks.0.matrix"].layout == "attention-factors"
    assert "blocks.1.matrix" not in source.taps()
    with pytest.raises(PlanError, match=r"blocks\.1\.attention\.q\.weight"):
        copy_trunk(make_student(tiny_facts()), source)
    assert source.fingerprint == "made"


def test_shard_units_are_the_blocks() -> None:
    student = make_student(tiny_facts())
    assert list(student.shard_units()) == list(student.decoder.blocks)
