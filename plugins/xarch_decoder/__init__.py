"""Decoders: facts, model, student, mixers, objectives, export, parity, benchmarks and test fixtures of the family."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the family, its objectives on factored logits, the choice of layers, and on-policy sampling."""
    registry.family("decoder", load="xarch_decoder.family:DecoderFamily", summary="causal language models")
    for name, load, compares, units, summary in (
        ("kl", "objectives:KL", "logits with logits", "nats/token", "divergence per token, in chunks"),
        ("cross-entropy", "objectives:CrossEntropy", "logits with tokens", "nats/token", "loss on upcoming tokens"),
        (
            "hard-label",
            "objectives:HardLabel",
            "logits with logits",
            "nats/token",
            "loss on the teacher's most likely token",
        ),
        (
            "uld",
            "bridge:ULD",
            "logits of two vocabularies",
            "probability/token",
            "distance of sorted probabilities, at positions where two tokenizers have read the same text",
        ),
        (
            "vocab-map",
            "bridge:VocabMap",
            "logits of two vocabularies",
            "nats/token",
            "divergence over the tokens that two vocabularies have in common, and all others as one",
        ),
    ):
        registry.objective(
            name,
            load=f"xarch_decoder.{load}",
            layouts=["factored-logits"],
            compares=compares,
            units=units,
            summary=summary,
        )
    registry.stage(
        "kl_probe",
        load="xarch_decoder.layer_probe:KLProbe",
        summary="choose the layers whose replacement costs the least KL",
    )
    registry.batch_step(
        "on-policy", load="xarch_decoder.on_policy:OnPolicy", summary="replace tokens with samples from the student"
    )


@hookimpl
def xarch_rebuild(facts: Any) -> Any:
    """Rebuild any decoder: its facts say all of its architecture."""
    from xarch_decoder.facts import DecoderFacts

    if not isinstance(facts, DecoderFacts):
        return None
    from xarch_decoder.rebuild import SameDecoder

    return SameDecoder(), SameDecoder.Options()
