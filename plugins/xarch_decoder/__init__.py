"""Decoders: facts, model, student, mixers, objectives, export, parity, bench and tests of the family."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """The family and its objectives."""
    registry.family("decoder", load="xarch_decoder.family:DecoderFamily", summary="causal language models")
    registry.objective("kl", load="xarch_decoder.objectives:KL", summary="divergence from the teacher's distribution")
    registry.objective("cross_entropy", load="xarch_decoder.objectives:CrossEntropy", summary="loss on true labels")
