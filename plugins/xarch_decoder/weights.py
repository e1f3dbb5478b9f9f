"""Canonical names and shapes of a decoder's weights; sources provide them, targets copy and map them."""

from __future__ import annotations

from collections.abc import Iterator

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.mixer import ATTENTION


def norm_names(facts: DecoderFacts, stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of one norm over the model width."""
    yield f"{stem}.weight", (facts.width,)
    if facts.norm == "layer":
        yield f"{stem}.bias", (facts.width,)


def _linear(stem: str, rows: int, cols: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", (rows, cols)
    if bias:
        yield f"{stem}.bias", (rows,)


def attention_shapes(facts: DecoderFacts, layer: int) -> dict[str, tuple[int, ...]]:
    """Return canonical names and shapes of one block's attention."""
    stem, d, e = f"blocks.{layer}.attention", facts.width, facts.head_dim
    names = dict(_linear(f"{stem}.q", facts.heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.k", facts.kv_heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.v", facts.kv_heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.o", d, facts.heads * e, facts.out_bias))
    if facts.qk_norm:
        names |= {f"{stem}.q_norm.weight": (e,), f"{stem}.k_norm.weight": (e,)}
    return names


def trunk_shapes(facts: DecoderFacts) -> dict[str, tuple[int, ...]]:
    """Return canonical names and shapes of everything except the mixers: embedding, norms, MLPs, head."""
    names: dict[str, tuple[int, ...]] = {"embed.weight": (facts.vocab, facts.width)}
    for i in range(facts.layers):
        names |= dict(norm_names(facts, f"blocks.{i}.norm1"))
        if not facts.shared_norm:
            names |= dict(norm_names(facts, f"blocks.{i}.norm2"))
        if facts.mlp == "gated":
            names |= dict(_linear(f"blocks.{i}.mlp.gate", facts.mlp_width, facts.width, facts.mlp_bias))
        names |= dict(_linear(f"blocks.{i}.mlp.up", facts.mlp_width, facts.width, facts.mlp_bias))
        names |= dict(_linear(f"blocks.{i}.mlp.down", facts.width, facts.mlp_width, facts.mlp_bias))
    names |= dict(norm_names(facts, "norm"))
    if not facts.tied:
        names["head.weight"] = (facts.vocab, facts.width)
    if facts.head_bias:
        names["head.bias"] = (facts.vocab,)
    return names


def weight_shapes(facts: DecoderFacts) -> dict[str, tuple[int, ...]]:
    """Return canonical names and shapes of a whole decoder teacher."""
    names = trunk_shapes(facts)
    for i in range(facts.layers):
        names |= attention_shapes(facts, i)
    return names


def attention_names(facts: DecoderFacts, layer: int, kind: str = ATTENTION) -> dict[str, str]:
    """Map student names to canonical names of one layer's attention weights, held by the mixer of a kind."""
    stem, own = f"blocks.{layer}.attention.", f"blocks.{layer}.mixers.{kind}."
    return {own + name.removeprefix(stem): name for name in attention_shapes(facts, layer)}
