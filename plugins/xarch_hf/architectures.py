"""Table of supported transformers model types: names of modules and weights, and facts, as data.

To add a decoder, write another :class:`Architecture` and add it to :data:`ARCHITECTURES`; no code is needed as long
as :class:`xarch_decoder.facts.DecoderFacts` can describe it. The plan checks an entry: every parameter of the model
must be named exactly once, with the shape that the facts imply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """A fact read from a field of the model's configuration.

    Attributes:
        name: the field.
        default: value if the field is missing or None.
    """

    name: str
    default: Any = None


@dataclass(frozen=True, slots=True)
class Fused:
    """One of several projections stored in one weight, interleaved per head: rows are (head, part, head width)."""

    name: str
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type.

    Attributes:
        model_type: as in config.json.
        body: module that maps token ids to final hidden states.
        block: module of block ``{i}``, which maps the residual stream to itself.
        rotary: module with ``inv_freq`` and ``attention_scaling``.
        stems: canonical name without ``.weight`` or ``.bias`` -> the model's name; ``{i}`` is the block.
        facts: field of DecoderFacts -> value, or its field in the configuration. Other fields keep the default of
            DecoderFacts; layers, width, vocab, heads, rotary facts and windows are filled in for every model.
        parallel: configuration field, or constant: whether attention and MLP read the same residual.
        windows: "none", "all" (every layer has ``sliding_window``) or "layer_types" (those named
            "sliding_attention").
        required: configuration field -> the only value that DecoderFacts can describe.
    """

    model_type: str
    body: str
    block: str
    rotary: str
    stems: Mapping[str, str | Fused]
    facts: Mapping[str, Any | Field]
    parallel: bool | Field = False
    windows: str = "none"
    required: Mapping[str, Any] = field(default_factory=dict)


_LLAMA_STEMS: dict[str, str | Fused] = {
    "embed": "model.embed_tokens",
    "blocks.{i}.norm1": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attention.q": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.k": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.v": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.o": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.norm2": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
_QK_NORMS: dict[str, str | Fused] = {
    "blocks.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
}
_LLAMA_FACTS: dict[str, Any | Field] = {
    "mlp": "gated",
    "norm": "rms",
    "norm_eps": Field("rms_norm_eps"),
    "kv_heads": Field("num_key_value_heads"),
    "head_dim": Field("head_dim"),
}


def _llama_like(model_type: str, *, windows: str, stems: Mapping[str, str | Fused] | None = None, **facts: Any) -> Any:
    return Architecture(
        model_type,
        body="model",
        block="model.layers.{i}",
        rotary="model.rotary_emb",
        stems={**_LLAMA_STEMS, **(stems or {})},
        facts={**_LLAMA_FACTS, **facts},
        windows=windows,
    )


_NEOX_QKV = "gpt_neox.layers.{i}.attention.query_key_value"

_ALL = (
    _llama_like(
        "llama",
        windows="none",
        qkv_bias=Field("attention_bias"),
        out_bias=Field("attention_bias"),
        mlp_bias=Field("mlp_bias"),
    ),
    _llama_like("mistral", windows="all"),
    _llama_like("qwen2", windows="layer_types", qkv_bias=True),
    _llama_like(
        "qwen3",
        windows="layer_types",
        stems=_QK_NORMS,
        qk_norm=True,
        qkv_bias=Field("attention_bias"),
        out_bias=Field("attention_bias"),
    ),
    Architecture(
        "gpt_neox",
        body="gpt_neox",
        block="gpt_neox.layers.{i}",
        rotary="gpt_neox.rotary_emb",
        stems={
            "embed": "gpt_neox.embed_in",
            "blocks.{i}.norm1": "gpt_neox.layers.{i}.input_layernorm",
            "blocks.{i}.attention.q": Fused(_NEOX_QKV, 0, 3),
            "blocks.{i}.attention.k": Fused(_NEOX_QKV, 1, 3),
            "blocks.{i}.attention.v": Fused(_NEOX_QKV, 2, 3),
            "blocks.{i}.attention.o": "gpt_neox.layers.{i}.attention.dense",
            "blocks.{i}.norm2": "gpt_neox.layers.{i}.post_attention_layernorm",
            "blocks.{i}.mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
            "blocks.{i}.mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
            "norm": "gpt_neox.final_layer_norm",
            "head": "lm_head",
        },
        facts={
            "mlp": "plain",
            "norm": "layer",
            "norm_eps": Field("layer_norm_eps"),
            "qkv_bias": Field("attention_bias"),
            "out_bias": Field("attention_bias"),
            "mlp_bias": True,
        },
        parallel=Field("use_parallel_residual"),
    ),
    Architecture(
        "phi",
        body="model",
        block="model.layers.{i}",
        rotary="model.rotary_emb",
        stems={
            "embed": "model.embed_tokens",
            "blocks.{i}.norm1": "model.layers.{i}.input_layernorm",
            "blocks.{i}.attention.q": "model.layers.{i}.self_attn.q_proj",
            "blocks.{i}.attention.k": "model.layers.{i}.self_attn.k_proj",
            "blocks.{i}.attention.v": "model.layers.{i}.self_attn.v_proj",
            "blocks.{i}.attention.o": "model.layers.{i}.self_attn.dense",
            "blocks.{i}.mlp.up": "model.layers.{i}.mlp.fc1",
            "blocks.{i}.mlp.down": "model.layers.{i}.mlp.fc2",
            "norm": "model.final_layernorm",
            "head": "lm_head",
        },
        facts={
            "mlp": "plain",
            "norm": "layer",
            "norm_eps": Field("layer_norm_eps"),
            "kv_heads": Field("num_key_value_heads"),
            "shared_norm": True,
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
            "head_bias": True,
        },
        parallel=True,
        required={"qk_layernorm": False},
    ),
)

ARCHITECTURES: dict[str, Architecture] = {a.model_type: a for a in _ALL}
"""Model type -> architecture."""
