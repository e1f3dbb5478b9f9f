"""Canonical weights: every parameter exactly once, as views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.hf.hf_models import NAMES, random_model, saved, teacher
from xarch import PlanError
from xarch_decoder.weights import weight_shapes
from xarch_hf.architectures import ARCHITECTURES, Fused
from xarch_hf.facts import decoder_facts
from xarch_hf.weights import CanonicalWeights


def facts_of(model: Any) -> Any:
    architecture = ARCHITECTURES[model.config.model_type]
    return decoder_facts(architecture, model.config, model.get_submodule(architecture.rotary), "x")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_used_exactly_once(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    weights = teacher(tmp_path).weights()
    assert {n: tuple(weights[n].shape) for n in weights} == weight_shapes(teacher(tmp_path).facts)
    values = torch.cat([weights[n].flatten() for n in weights]).sort().values
    wanted = torch.cat([p.detach().flatten() for p in model.parameters()]).sort().values
    assert torch.equal(values, wanted)


def test_whole_weights_are_views(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    made = teacher(tmp_path)
    own = {p.data_ptr() for p in made.module.parameters()}
    assert all(weight.data_ptr() in own for weight in made.weights().values())


def test_a_weight_nobody_names_is_an_error() -> None:
    model: Any = random_model("llama")
    model.model.layers[1].mlp.register_parameter("gain", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(PlanError, match=r"not covered by a canonical name: model\.layers\.1\.mlp\.gain"):
        CanonicalWeights(model, ARCHITECTURES["llama"], facts_of(model))


def test_a_weight_that_is_not_there_is_an_error() -> None:
    model: Any = random_model("llama")
    facts = replace(facts_of(model), qkv_bias=True)
    with pytest.raises(PlanError, match=r"no weight model\.layers\.0\.self_attn\.q_proj\.bias"):
        CanonicalWeights(model, ARCHITECTURES["llama"], facts)


def test_another_shape_is_an_error() -> None:
    model: Any = random_model("llama")
    with pytest.raises(PlanError, match=r"mlp\.gate\.weight is \(48, 32\), but the configuration implies \(47, 32\)"):
        CanonicalWeights(model, ARCHITECTURES["llama"], replace(facts_of(model), mlp_width=47))


def test_a_weight_named_twice_is_an_error() -> None:
    model: Any = random_model("llama")
    stems = {**ARCHITECTURES["llama"].stems, "blocks.{i}.mlp.up": "model.layers.{i}.mlp.gate_proj"}
    with pytest.raises(PlanError, match=r"canonical name: model\.layers\.0\.mlp\.up_proj"):
        CanonicalWeights(model, replace(ARCHITECTURES["llama"], stems=stems), facts_of(model))


def test_a_part_of_a_fused_weight_used_twice_is_an_error() -> None:
    model: Any = random_model("gpt_neox")
    architecture = ARCHITECTURES["gpt_neox"]
    again = {**architecture.stems, "blocks.{i}.attention.v": architecture.stems["blocks.{i}.attention.k"]}
    assert isinstance(again["blocks.{i}.attention.v"], Fused)
    with pytest.raises(PlanError, match=r"not used exactly once: gpt_neox\.layers\.0"):
        CanonicalWeights(model, replace(architecture, stems=again), facts_of(model))
