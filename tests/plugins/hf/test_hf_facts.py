"""Facts from configurations, against what the models themselves compute with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.hf.hf_models import CONFIGS, LAYERS, NAMES, SIZES, random_model, saved, teacher
from xarch import UsageError
from xarch_decoder.facts import DecoderFacts
from xarch_hf.architectures import ARCHITECTURES
from xarch_hf.config_keys import READ
from xarch_hf.model import describe_folder


def write_config(folder: Path, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def facts_of(name: str, folder: Path) -> DecoderFacts:
    CONFIGS[name]().save_pretrained(folder)
    return describe_folder(folder, "hf:x").facts


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_description_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    made = teacher(tmp_path)
    assert describe_folder(tmp_path, "hf:x").facts == made.facts
    rotary = made.module.get_submodule(ARCHITECTURES[model.config.model_type].rotary)
    assert made.facts.inverse_frequencies == tuple(rotary.inv_freq.tolist())
    assert made.facts.rotary_gain == rotary.attention_scaling
    assert DecoderFacts.from_json(json.loads(json.dumps(made.facts.to_json()))) == made.facts


def test_every_entry_of_the_table_is_tested() -> None:
    assert {CONFIGS[name]().model_type for name in NAMES} == set(ARCHITECTURES)


def test_llama3_scaling_has_three_bands(tmp_path: Path) -> None:
    facts = facts_of("llama-biased-llama3", tmp_path)
    pairs = len(facts.inverse_frequencies)
    plain = [10000.0 ** (-i / pairs) for i in range(pairs)]
    ratios = [seen / p for seen, p in zip(facts.inverse_frequencies, plain, strict=True)]
    wavelengths = [2 * math.pi / p for p in plain]
    assert facts.head_dim == 16
    assert pairs == 8
    for ratio, wavelength in zip(ratios, wavelengths, strict=True):
        if wavelength < 32 / 4:
            assert ratio == pytest.approx(1)
        elif wavelength > 32:
            assert ratio == pytest.approx(1 / 8)
        else:
            assert 1 / 8 < ratio < 1
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(1 / 8)
    assert (facts.qkv_bias, facts.out_bias, facts.mlp_bias) == (True, True, True)


def test_yarn_scales_cos_and_sin(tmp_path: Path) -> None:
    assert facts_of("llama-yarn", tmp_path).rotary_gain == pytest.approx(0.1 * math.log(4) + 1)


def test_linear_scaling_divides_every_frequency(tmp_path: Path) -> None:
    facts = facts_of("qwen2-mixed-windows", tmp_path)
    assert facts.inverse_frequencies == pytest.approx([10000.0 ** (-i / 4) / 2 for i in range(4)])


def test_windows_are_per_layer(tmp_path: Path) -> None:
    for name, windows in {"mistral-windowed": (5, 5, 5), "qwen2-mixed-windows": (None, 6, 6), "llama": ()}.items():
        folder = tmp_path / name
        folder.mkdir()
        assert facts_of(name, folder).windows == windows


def test_particulars_of_each_architecture(tmp_path: Path) -> None:
    wanted: dict[str, dict[str, Any]] = {
        "llama": {"tied": True, "kv_heads": 2, "norm_eps": 1e-5, "mlp": "gated", "qkv_bias": False},
        "qwen2-mixed-windows": {"qkv_bias": True, "out_bias": False, "tied": False},
        "qwen3": {"qk_norm": True, "head_dim": 16, "scale": 0.25},
        "gpt_neox": {"block": "parallel", "shared_norm": False, "norm": "layer", "mlp": "plain", "mlp_bias": True},
        "gpt_neox-sequential": {"block": "sequential", "activation": "gelu_tanh", "qkv_bias": False},
        "phi": {"block": "parallel", "shared_norm": True, "head_bias": True, "activation": "gelu_tanh"},
    }
    for name, facts in wanted.items():
        folder = tmp_path / name
        folder.mkdir()
        seen = facts_of(name, folder)
        assert {key: getattr(seen, key) for key in facts} == facts, name
    assert len(facts_of("gpt_neox", tmp_path).inverse_frequencies) == 1
    assert len(facts_of("phi", tmp_path).inverse_frequencies) == 2


def test_several_end_tokens_are_all_kept(tmp_path: Path) -> None:
    """h06: those of generation_config.json too."""
    write_config(tmp_path, model_type="llama", **{**SIZES, "eos_token_id": [7, 9], "bos_token_id": None})
    facts = describe_folder(tmp_path, "hf:x").facts
    assert (facts.bos, facts.eos) == (None, (7, 9))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 11]}')
    facts = describe_folder(tmp_path, "hf:x").facts
    assert facts.eos == (7, 9, 11)
    assert DecoderFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UsageError, match="eos_token_id is '</s>'"):
        describe_folder(tmp_path, "hf:x")


def test_a_description_allocates_no_weights(tmp_path: Path) -> None:
    wide = {**SIZES, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    write_config(tmp_path, model_type="llama", **wide, num_key_value_heads=4)
    described = describe_folder(tmp_path, "hf:x")
    assert described.parameters > 60e9
    assert all(p.device.type == "meta" for p in described.skeleton.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "rwkv9"}, r"'rwkv9' is not supported.*\n.*supported: gpt_neox, llama.*write an entry"),
        ({"model_type": "rwkv9", "auto_map": {"AutoModel": "x.Y"}}, "trust_remote_code is off"),
        ({}, "model type None"),
        ({"model_type": "llama", **SIZES, "hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ({"model_type": "llama", **SIZES, "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"model_type": "llama", **SIZES, "num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"model_type": "llama", **SIZES, "hidden_size": 33}, "transformers rejects"),
        ({"model_type": "llama", **SIZES, "hidden_size": "wide"}, "transformers rejects"),
        ({"model_type": "llama", **SIZES, "quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"model_type": "phi", **SIZES, "qk_layernorm": True}, "qk_layernorm is True"),
        (
            {
                "model_type": "llama",
                **SIZES,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
            "'dynamic' changes its frequencies",
        ),
    ],
)
def test_what_cannot_be_described_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_config(tmp_path, **fields)
    with pytest.raises(UsageError, match=message):
        describe_folder(tmp_path, "hf:x")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_broken_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.json is not"):
        describe_folder(tmp_path, "hf:x")


def test_own_code_of_a_known_type_is_never_imported(tmp_path: Path) -> None:
    config = CONFIGS["llama"]().to_dict()
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    write_config(tmp_path, **config)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert describe_folder(tmp_path, "hf:x").facts.layers == LAYERS


def test_fused_projections_are_cut_per_head() -> None:
    from xarch_hf.facts import decoder_facts
    from xarch_hf.weights import CanonicalWeights

    model: Any = random_model("gpt_neox")
    architecture = ARCHITECTURES["gpt_neox"]
    facts = decoder_facts(architecture, model.config, model.gpt_neox.rotary_emb, "x")
    weights = CanonicalWeights(model, architecture, facts)
    fused = model.gpt_neox.layers[1].attention.query_key_value
    x = torch.randn(5, 32)
    q, k, v = fused(x).view(5, 4, 24).chunk(3, -1)
    for name, wanted in (("q", q), ("k", k), ("v", v)):
        stem = f"blocks.1.attention.{name}"
        seen = torch.nn.functional.linear(x, weights[f"{stem}.weight"], weights[f"{stem}.bias"])
        assert torch.allclose(seen, wanted.flatten(1), atol=1e-6)


def test_keys_that_nobody_reads_are_named(tmp_path: Path) -> None:
    """h05, for config.json: a key is read, known to be harmless, or named."""
    write_config(tmp_path, model_type="llama", **SIZES, logits_scaling=8.0, torch_dtype="float32")
    (note,) = describe_folder(tmp_path, "hf:x").notes
    assert "logits_scaling" in note
    assert "torch_dtype" not in note


def test_a_key_that_transformers_learns_needs_its_usual_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xarch_hf.config_keys.READ", READ - {"use_parallel_residual"})
    for value in (True, False):
        write_config(tmp_path, model_type="gpt_neox", **SIZES, use_parallel_residual=value)
        if value:
            assert describe_folder(tmp_path, "hf:x").notes == ()
        else:
            with pytest.raises(UsageError, match="sets use_parallel_residual to False, which transformers reads"):
                describe_folder(tmp_path, "hf:x")


@pytest.mark.parametrize("name", NAMES)
def test_no_known_configuration_has_an_unknown_key(name: str, tmp_path: Path) -> None:
    CONFIGS[name]().save_pretrained(tmp_path)
    assert describe_folder(tmp_path, "hf:x").notes == ()
