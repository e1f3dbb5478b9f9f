"""The decoder computes what transformers computes, for four block forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from tests.plugins.decoder.decoder_models import make_student, tiny_facts
from xarch_decoder.facts import DecoderFacts

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
LLAMA_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mixers.attention.q_norm": "self_attn.q_norm",
    "mixers.attention.k_norm": "self_attn.k_norm",
    "mixers.attention.q": "self_attn.q_proj",
    "mixers.attention.k": "self_attn.k_proj",
    "mixers.attention.v": "self_attn.v_proj",
    "mixers.attention.o": "self_attn.o_proj",
}


def shake(model: Any) -> Any:
    """Random values everywhere, norms and biases included: defaults of one and zero would hide swapped tensors."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
    return model.eval()


def llama_weights(model: Any, names: list[str]) -> dict[str, torch.Tensor]:
    state, found = model.state_dict(), {}
    for name in names:
        if not name.startswith("blocks."):
            found[name] = state[LLAMA_NAMES[name]]
            continue
        _, layer, rest = name.split(".", 2)
        stem, leaf = rest.rsplit(".", 1)
        found[name] = state[f"model.layers.{layer}.{LLAMA_NAMES[stem]}.{leaf}"]
    return found


def neox_weights(model: Any, facts: DecoderFacts, names: list[str]) -> dict[str, torch.Tensor]:
    state, found = model.state_dict(), {}
    plain = {
        "embed.weight": "gpt_neox.embed_in.weight",
        "norm.weight": "gpt_neox.final_layer_norm.weight",
        "norm.bias": "gpt_neox.final_layer_norm.bias",
        "head.weight": "embed_out.weight" if "embed_out.weight" in state else "lm_head.weight",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        "mixers.attention.o": "attention.dense",
    }
    for name in names:
        if name in plain:
            found[name] = state[plain[name]]
            continue
        _, layer, rest = name.split(".", 2)
        stem, leaf = rest.rsplit(".", 1)
        if stem in plain:
            found[name] = state[f"gpt_neox.layers.{layer}.{plain[stem]}.{leaf}"]
            continue
        fused = state[f"gpt_neox.layers.{layer}.attention.query_key_value.{leaf}"]
        part = "qkv".index(stem[-1])
        found[name] = fused.unflatten(0, (facts.heads, 3, facts.head_dim))[:, part].flatten(0, 1)
    return found


def llama() -> tuple[Any, DecoderFacts]:
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(**SMALL, num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True)
    )
    return model, tiny_facts(norm_eps=1e-6)


def qwen2() -> tuple[Any, DecoderFacts]:
    model = hf.Qwen2ForCausalLM(
        hf.Qwen2Config(
            **SMALL,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            use_sliding_window=True,
            sliding_window=7,
            max_window_layers=1,
            rms_norm_eps=1e-6,
        )
    )
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    return model, tiny_facts(tied=False, windows=(None, 7), norm_eps=1e-6, qkv_bias=True)


def qwen3() -> tuple[Any, DecoderFacts]:
    model = hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-6)
    )
    return model, tiny_facts(kv_heads=1, head_dim=16, scale=0.25, qk_norm=True, norm_eps=1e-6)


def neox(parallel: bool) -> tuple[Any, DecoderFacts]:
    model = hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            **SMALL,
            hidden_act="gelu",
            use_parallel_residual=parallel,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    )
    facts = tiny_facts(
        kv_heads=4,
        norm="layer",
        block="parallel" if parallel else "sequential",
        mlp="plain",
        activation="gelu",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=False,
    )
    return model, facts


BUILDS = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "neox": lambda: neox(True), "neox-seq": lambda: neox(False)}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_logits_equal_transformers(build: Any) -> None:
    model, facts = build()
    shake(model)
    inner = model.gpt_neox if hasattr(model, "gpt_neox") else model.model
    facts = tiny_facts(**{**facts.to_json(), "inverse_frequencies": tuple(inner.rotary_emb.inv_freq.tolist())})
    student = make_student(facts)
    names = list(student.module.state_dict())
    weights = neox_weights(model, facts, names) if hasattr(model, "gpt_neox") else llama_weights(model, names)
    student.module.load_state_dict(weights, strict=True)
    ids = torch.randint(61, (2, 29), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        got = student.decoder(ids)
    assert got.shape == expected.shape == (2, 29, 61)
    assert (got - expected).abs().max() <= 1e-5
    assert expected.abs().max() > 0.5
