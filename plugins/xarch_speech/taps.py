"""Taps of the speech family, where k is an encoder layer and j a decoder layer:

==========================  ======  ===============  ==========================================================
name                        kind    layout           value
==========================  ======  ===============  ==========================================================
encoder.k.input             hidden  BSD              residual stream entering the layer
encoder.k.output            hidden  BSD              residual stream leaving the layer
memory                      hidden  BSD              the encoder's last output after its norm
decoder.j.cross_key         hidden  BKSE             keys of the recording as the layer reads them
decoder.j.cross_value       hidden  BKSE             values of the recording as the layer reads them
decoder.j.input             hidden  BTD              residual stream entering the layer
decoder.j.own               hidden  BTD              what self-attention adds to it
decoder.j.heard             hidden  BTD              what cross-attention adds to it
decoder.j.output            hidden  BTD              residual stream leaving the layer
final                       hidden  BTD              after the final norm
logits                      logits  factored-logits  hidden states and head, at every decoder token
==========================  ======  ===============  ==========================================================

S positions of the encoder, T decoder tokens, D width, K heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xarch import Tap

if TYPE_CHECKING:
    from xarch_speech.facts import SpeechFacts

STREAM = ("input", "own", "heard", "output")


def model_taps(facts: SpeechFacts) -> dict[str, Tap]:
    """Return all taps in the order in which a forward pass reaches them."""
    d, kv, size = {"D": facts.width}, {"K": facts.heads, "E": facts.head_dim}, {"S": facts.positions}
    taps = [
        Tap(f"encoder.{k}.{leaf}", "hidden", "BSD", d | size)
        for k in range(facts.encoder)
        for leaf in ("input", "output")
    ]
    taps.append(Tap("memory", "hidden", "BSD", d | size))
    for j in range(facts.decoder):
        taps += [Tap(f"decoder.{j}.cross_{what}", "hidden", "BKSE", kv | size) for what in ("key", "value")]
    for j in range(facts.decoder):
        taps += [Tap(f"decoder.{j}.{leaf}", "hidden", "BTD", d) for leaf in STREAM]
    taps.append(Tap("final", "hidden", "BTD", d))
    info = {"elements": "BTD", "D": facts.width, "dense": "BTV", "ahead": 1}
    taps.append(Tap("logits", "logits", "factored-logits", {"V": facts.vocab}, info))
    return {tap.name: tap for tap in taps}
