"""What an encoder-decoder of some of a decoder's layers will cost, before it is built.

Long prompts wait for multiply-adds, single tokens for the bytes of weights, so a layer's parameters stand for both
(`spec` figures on ONNX Runtime: first token within 0.08 of this from 256 tokens on).
"""

from __future__ import annotations

from dataclasses import dataclass

from xarch_decoder.facts import DecoderFacts
from xarch_encdec.facts import Cross

STEP = 8.7
"""Time of a parameter for a single token, over its time for one token of a long prompt (SmolLM2-135M, one thread:
35.5 ms a token against 1639 ms for 512)."""


@dataclass(frozen=True)
class Prediction:
    """An encoder-decoder beside its teacher.

    Attributes:
        encoder, decoder: layers.
        parameters: as a share of the teacher's.
        first_token: time to the first token of an answer, as a share of the teacher's.
        speed: tokens per second after it, in the teacher's.
        total: time of prompt and answer, as a share of the teacher's.
    """

    encoder: int
    decoder: int
    parameters: float
    first_token: float
    speed: float
    total: float


@dataclass(frozen=True)
class Costs:
    """Parameters of the parts of a layer.

    Attributes:
        layer: a whole layer.
        memory: the projections with which a decoder layer reads the source.
        reading: what a decoder layer has besides a layer and that; nothing if merged.
        head: output projection.
        token: numbers a layer keeps for each token.
    """

    layer: float
    memory: float
    reading: float
    head: float
    token: float

    @classmethod
    def of(cls, facts: DecoderFacts, cross: Cross) -> Costs:
        """Return those of a decoder's layers."""
        d, inner, keys = facts.width, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        mlp = (3 if facts.mlp == "gated" else 2) * d * facts.mlp_width
        memory = 2 * d * keys
        return cls(
            layer=2 * d * inner + memory + mlp,
            memory=memory,
            reading=0 if cross == "merged" else 2 * d * inner,
            head=d * facts.vocab,
            token=2 * keys,
        )


def predict(
    facts: DecoderFacts, cross: Cross, encoder: int, decoder: int, *, prompt: int, answer: int, shared: int = 0
) -> Prediction:
    """Return what ``encoder`` and ``decoder`` layers cost for such a prompt and answer, against the whole decoder.

    Args:
        shared: encoder layers without weights of their own.
    """
    c, layers = Costs.of(facts, cross), facts.layers
    own = 0 if cross == "merged" else c.memory
    embeddings = c.head * (1 if facts.tied else 2)
    parameters = ((encoder - shared) * c.layer + decoder * (c.layer + c.reading + own) + embeddings) / (
        layers * c.layer + embeddings
    )
    first, first_teacher = prompt * (encoder * c.layer + decoder * c.memory), prompt * layers * c.layer
    step = decoder * (c.layer + c.reading) + c.head + decoder * c.token * prompt
    step_teacher = layers * c.layer + c.head + layers * c.token * prompt
    total = (first + answer * STEP * step) / (first_teacher + answer * STEP * step_teacher)
    return Prediction(encoder, decoder, parameters, first / first_teacher, step_teacher / step, total)


def best(
    facts: DecoderFacts, cross: Cross, *, prompt: int, answer: int, parameters: float, share: bool = False
) -> Prediction | None:
    """Return the split that takes least time among the largest within a share of the teacher's parameters; None if not
    one layer of each fits.

    Args:
        share: whether layers that encoder and decoder have in common count once.
    """

    def split(encoder: int, decoder: int) -> Prediction:
        common = max(0, encoder + decoder - facts.layers) if share else 0
        return predict(facts, cross, encoder, decoder, prompt=prompt, answer=answer, shared=common)

    chosen = None
    for decoder in range(1, facts.layers + 1):
        each = (split(encoder, decoder) for encoder in range(1, facts.layers + 1))
        fitting = [found for found in each if found.parameters <= parameters + 1e-9]
        # Of each number of decoder layers the most encoder layers: a smaller student is always faster.
        if fitting and (chosen is None or fitting[-1].total < chosen.total):
            chosen = fitting[-1]
    return chosen
