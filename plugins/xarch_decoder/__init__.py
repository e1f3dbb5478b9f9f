"""Decoders: facts, model, student, mixers, objectives, export, parity, bench and tests of the family."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """The family, what the vocabulary means for logits that are never whole, and samples of the student's own."""
    registry.family("decoder", load="xarch_decoder.family:DecoderFamily", summary="causal language models")
    for name, attribute, compares, summary in (
        ("kl", "KL", "logits with logits", "divergence per token, in chunks"),
        ("cross-entropy", "CrossEntropy", "logits with tokens", "loss on the tokens ahead"),
        ("hard-label", "HardLabel", "logits with logits", "loss on the likeliest token"),
    ):
        registry.objective(
            name,
            load=f"xarch_decoder.objectives:{attribute}",
            layouts=["factored-logits"],
            compares=compares,
            units="nats/token",
            summary=summary,
        )
    registry.batch_step(
        "on-policy", load="xarch_decoder.on_policy:OnPolicy", summary="replaces tokens by samples of the student"
    )
