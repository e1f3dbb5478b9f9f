"""Taps of the encoder-decoder family, where k is an encoder layer and j a decoder layer:

==========================  ======  ===============  ==========================================================
name                        kind    layout           value
==========================  ======  ===============  ==========================================================
encoder.k.input             hidden  BSD              residual stream entering the layer
encoder.k.output            hidden  BSD              residual stream leaving the layer
memory                      hidden  BSD              the encoder's last output after its norm
decoder.j.cross_key         hidden  BKSE             keys of the source as the layer reads them
decoder.j.cross_value       hidden  BKSE             values of the source as the layer reads them
decoder.j.input             hidden  BTD              residual stream entering the layer
decoder.j.output            hidden  BTD              residual stream leaving the layer
final                       hidden  BTD              after the final norm
logits                      logits  factored-logits  hidden states and head, at every decoder token
==========================  ======  ===============  ==========================================================

S source tokens, T decoder tokens, D width, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xarch import Tap

if TYPE_CHECKING:
    from xarch_decoder.facts import DecoderFacts
    from xarch_encdec.facts import EncDecFacts


def model_taps(facts: EncDecFacts) -> dict[str, Tap]:
    """Return all taps in the order in which a forward pass reaches them."""
    d, kv = {"D": facts.layer.width}, {"K": facts.layer.kv_heads, "E": facts.layer.head_dim}
    read = {"D": facts.encoder_layer.width}
    taps = [
        Tap(f"encoder.{k}.{leaf}", "hidden", "BSD", read) for k in range(facts.encoder) for leaf in ("input", "output")
    ]
    taps.append(Tap("memory", "hidden", "BSD", read))
    for j in range(facts.decoder):
        taps += [Tap(f"decoder.{j}.cross_{what}", "hidden", "BKSE", kv) for what in ("key", "value")]
    for j in range(facts.decoder):
        taps += [Tap(f"decoder.{j}.{leaf}", "hidden", "BTD", d) for leaf in ("input", "output")]
    return {tap.name: tap for tap in taps} | target_tail(facts.layer)


def target_tail(layer: DecoderFacts) -> dict[str, Tap]:
    """Return the taps after the last layer at the decoder's tokens, of an encoder-decoder or of a decoder that reads
    source and target as one row."""
    info = {"elements": "BTD", "D": layer.width, "dense": "BTV", "ahead": 1}
    return {
        "final": Tap("final", "hidden", "BTD", {"D": layer.width}),
        "logits": Tap("logits", "logits", "factored-logits", {"V": layer.vocab}, info),
    }
