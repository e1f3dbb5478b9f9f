"""What an encoder-decoder of some of a decoder's layers will cost, before it is built.

Long prompts wait for multiply-adds, single tokens for the bytes of weights, so a layer's parameters stand for both.
Times are in units of a multiply-add in a product of a long prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from xarch.kernels import in_runtime
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.facts import Cross

STEP = 10.0
"""Time of a parameter for a single token."""

KEPT = 5.0
"""Time of a number that was kept for an earlier token, which every query head of its group reads, over that of a
parameter."""

Form = Literal["causal operator", "operator", "plain"]

READS: dict[Form, float] = {"causal operator": 1.1, "operator": 1.5, "plain": 1.8}
"""Time of a multiply-add of attention, each token counted with all of a prompt: as an operator of onnxruntime for
tokens that read those before them, as one for tokens that read all, as products and a softmax.

Fitted, as :data:`STEP` and :data:`KEPT`, to SmolLM2-135M on one thread of a processor with AVX2
(`benchmarks/encdec_speed.py`)."""


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
        pair: multiply-adds of a layer's attention for each pair of tokens.
    """

    layer: float
    memory: float
    reading: float
    head: float
    token: float
    pair: float

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
            pair=2 * inner,
        )


def predict(
    facts: DecoderFacts,
    cross: Cross,
    encoder: int,
    decoder: int,
    *,
    prompt: int,
    answer: int,
    shared: int = 0,
    width: int | None = None,
    runtime: bool = True,
) -> Prediction:
    """Return what ``encoder`` and ``decoder`` layers cost for such a prompt and answer, against the whole decoder.

    Args:
        shared: encoder layers without weights of their own.
        width: of the encoder; None: the teacher's.
        runtime: whether graphs contain operators of onnxruntime's own, as those of the profile ``cpu`` do.
    """
    c, layers = Costs.of(facts, cross), facts.layers
    e = Costs.of(replace(facts, width=width or facts.width), cross)
    enter = 0 if width in (None, facts.width) else facts.width * (width or 0)
    own = 0 if cross == "merged" else e.memory
    embeddings = c.head * (1 if facts.tied else 2)
    ours_all = (encoder - shared) * e.layer + enter + decoder * (c.layer + c.reading + own) + embeddings
    parameters = ours_all / (layers * c.layer + embeddings)
    theirs: Form = "causal operator" if runtime else "plain"
    ours: Form = "operator" if runtime and in_runtime("attention_to_all") else "plain"
    step = decoder * (c.layer + c.reading) + c.head + KEPT * decoder * c.token * prompt
    step_teacher = layers * c.layer + c.head + KEPT * layers * c.token * prompt
    source = encoder * (e.layer + READS[ours] * e.pair * prompt) + enter + decoder * e.memory
    first = prompt * source + STEP * step
    first_teacher = prompt * layers * (c.layer + READS[theirs] * c.pair * prompt) + STEP * c.head
    total = (first + (answer - 1) * STEP * step) / (first_teacher + (answer - 1) * STEP * step_teacher)
    return Prediction(encoder, decoder, parameters, first / first_teacher, step_teacher / step, total)


def best(
    facts: DecoderFacts,
    cross: Cross,
    *,
    prompt: int,
    answer: int,
    parameters: float,
    share: bool = False,
    width: int | None = None,
) -> Prediction | None:
    """Return the split that takes least time among the largest within a share of the teacher's parameters; None if not
    one layer of each fits.

    Args:
        share: whether layers that encoder and decoder have in common count once.
        width: of the encoder.
    """

    def split(encoder: int, decoder: int) -> Prediction:
        common = max(0, encoder + decoder - facts.layers) if share else 0
        return predict(facts, cross, encoder, decoder, prompt=prompt, answer=answer, shared=common, width=width)

    chosen = None
    for decoder in range(1, facts.layers + 1):
        each = (split(encoder, decoder) for encoder in range(1, facts.layers + 1))
        fitting = [found for found in each if found.parameters <= parameters + 1e-9]
        # Of each number of decoder layers the most encoder layers: a smaller student is always faster.
        if fitting and (chosen is None or fitting[-1].total < chosen.total):
            chosen = fitting[-1]
    return chosen
