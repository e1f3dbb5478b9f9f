"""Decoders: facts, model, student, mixers, objectives, export, parity, bench and tests of the family."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """The family, what the vocabulary means for logits that are never whole, and samples of the student's own."""
    registry.family("decoder", load="xarch_decoder.family:DecoderFamily", summary="causal language models")
    logits = {"layouts": ["factored-logits"]}
    registry.objective("kl", load="xarch_decoder.objectives:KL", summary="divergence per token, in chunks", **logits)
    registry.objective(
        "cross-entropy", load="xarch_decoder.objectives:CrossEntropy", summary="loss on the tokens ahead", **logits
    )
    registry.objective(
        "hard-label",
        load="xarch_decoder.objectives:HardLabel",
        summary="loss on the likeliest token",
        **logits,
    )
    registry.batch_step(
        "on-policy", load="xarch_decoder.on_policy:OnPolicy", summary="replaces tokens by samples of the student"
    )
