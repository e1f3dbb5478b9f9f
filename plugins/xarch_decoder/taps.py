"""Canonical taps of the decoder family; sources provide them, targets and methods match them.

Taps, where i is a block index; their positions are the same in every decoder:

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

from typing import TYPE_CHECKING

from xarch import Tap

if TYPE_CHECKING:
    from xarch_decoder.facts import DecoderFacts

BLOCK_TAPS = ("input", "mixer_in", "matrix", "values", "heads", "mixer_out", "output")


def block_tap(facts: DecoderFacts, layer: int, leaf: str) -> Tap:
    """Declare one tap of a block."""
    name = f"blocks.{layer}.{leaf}"
    if leaf == "matrix":
        return Tap(name, "matrix", "attention-factors", {"H": facts.heads})
    if leaf == "values":
        return Tap(name, "hidden", "BLKE", {"K": facts.kv_heads, "E": facts.head_dim})
    if leaf == "heads":
        return Tap(name, "hidden", "BLHE", {"H": facts.heads, "E": facts.head_dim})
    return Tap(name, "hidden", "BLD", {"D": facts.width})


def teacher_taps(facts: DecoderFacts) -> dict[str, Tap]:
    """Return all taps of a decoder teacher in the order in which a forward pass reaches them."""
    taps = [block_tap(facts, i, leaf) for i in range(facts.layers) for leaf in BLOCK_TAPS]
    return {t.name: t for t in taps} | tail_taps(facts)


def tail_taps(facts: DecoderFacts) -> dict[str, Tap]:
    """Return the taps after the last block."""
    info = {"elements": "BLD", "D": facts.width, "dense": "BLV", "ahead": 1, "segments": "segment_ids"}
    return {
        "final": Tap("final", "hidden", "BLD", {"D": facts.width}),
        # A cache stores the hidden states; the head need not be stored.
        "logits": Tap("logits", "logits", "factored-logits", {"V": facts.vocab}, info),
    }
