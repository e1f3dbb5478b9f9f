"""Canonical tap and weight names of the decoder family; sources give them, targets ask for them.

Taps of block i, all before or after the same points in every decoder:

==================  ======  ==================  ==========================================================
name                kind    layout              value
==================  ======  ==================  ==========================================================
blocks.i.input      hidden  BLD                 residual stream entering the block
blocks.i.mixer_in   hidden  BLD                 after norm1: what the mixer reads
blocks.i.matrix     matrix  attention-factors   q and k after rotary embedding (students: their own factors)
blocks.i.values     hidden  BLKE                values, before heads are repeated
blocks.i.heads      hidden  BLHE                per-head mixer output before the output projection
blocks.i.mixer_out  hidden  BLD                 mixer output after the output projection
blocks.i.output     hidden  BLD                 residual stream leaving the block (before any final norm)
final               hidden  BLD                 after the final norm
logits              logits  factored-logits     hidden states and head
==================  ======  ==================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator

from xarch import Tap
from xarch_decoder.facts import DecoderFacts

BLOCK_TAPS = ("input", "mixer_in", "matrix", "values", "heads", "mixer_out", "output")


def block_tap(facts: DecoderFacts, layer: int, leaf: str) -> Tap:
    """Declaration of one tap of a block."""
    name = f"blocks.{layer}.{leaf}"
    if leaf == "matrix":
        return Tap(name, "matrix", "attention-factors", {"H": facts.heads})
    if leaf == "values":
        return Tap(name, "hidden", "BLKE", {"K": facts.kv_heads, "E": facts.head_dim})
    if leaf == "heads":
        return Tap(name, "hidden", "BLHE", {"H": facts.heads, "E": facts.head_dim})
    return Tap(name, "hidden", "BLD", {"D": facts.width})


def teacher_taps(facts: DecoderFacts) -> dict[str, Tap]:
    """All taps of a decoder teacher in the order in which a forward pass reaches them."""
    taps = [block_tap(facts, i, leaf) for i in range(facts.layers) for leaf in BLOCK_TAPS]
    return {t.name: t for t in taps} | tail_taps(facts)


def tail_taps(facts: DecoderFacts) -> dict[str, Tap]:
    """Taps after the last block."""
    return {
        "final": Tap("final", "hidden", "BLD", {"D": facts.width}),
        "logits": Tap("logits", "logits", "factored-logits", {"V": facts.vocab}),
    }


def norm_names(facts: DecoderFacts, stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one norm over the model width."""
    yield f"{stem}.weight", (facts.width,)
    if facts.norm == "layer":
        yield f"{stem}.bias", (facts.width,)


def _linear(stem: str, rows: int, cols: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", (rows, cols)
    if bias:
        yield f"{stem}.bias", (rows,)


def attention_shapes(facts: DecoderFacts, layer: int) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of one block's attention."""
    stem, d, e = f"blocks.{layer}.attention", facts.width, facts.head_dim
    names = dict(_linear(f"{stem}.q", facts.heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.k", facts.kv_heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.v", facts.kv_heads * e, d, facts.qkv_bias))
    names |= dict(_linear(f"{stem}.o", d, facts.heads * e, facts.out_bias))
    if facts.qk_norm:
        names |= {f"{stem}.q_norm.weight": (e,), f"{stem}.k_norm.weight": (e,)}
    return names


def trunk_shapes(facts: DecoderFacts) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of everything except the mixers: embedding, norms, MLPs, head."""
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
    """Canonical names and shapes of a whole decoder teacher."""
    names = trunk_shapes(facts)
    for i in range(facts.layers):
        names |= attention_shapes(facts, i)
    return names
