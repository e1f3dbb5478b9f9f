"""What a causal decoder is, as data: enough to rebuild it exactly from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from xarch import Size, Tap, UsageError, typed
from xarch_decoder.taps import teacher_taps

Layers = Annotated[int, Field(ge=1, le=2048)]
Vocabulary = Annotated[int, Field(ge=1, le=1 << 24)]
Positions = Annotated[int, Field(ge=1, le=1 << 40)]
Token = Annotated[int, Field(ge=0, le=1 << 24)]
Positive = Annotated[float, Field(gt=0, le=1e9)]


@dataclass(frozen=True)
class DecoderFacts:
    """Architecture of a pre-norm causal decoder, independent of any library.

    Attributes:
        layers, width, vocab: number of blocks, model width, vocabulary rows.
        heads, kv_heads, head_dim: attention heads; query head h reads key head ``h // (heads // kv_heads)``.
        mlp_width, mlp, activation: inner width; "gated" is down(act(gate x) * up x), "plain" is down(act(up x)).
        norm, norm_eps: "rms" or "layer" (with bias), and epsilon.
        block: "sequential" (h = x + mix(norm1 x); h + mlp(norm2 h)) or "parallel"
            (x + mix(norm1 x) + mlp(norm2 x)); ``shared_norm`` means norm2 is norm1.
        qkv_bias, out_bias, mlp_bias, head_bias: which projections have a bias.
        qk_norm: RMS norm over the head dimension of q and k before rotary embedding.
        scale: factor on q·k.
        inverse_frequencies: rotary inverse frequencies, one per rotated pair; its length fixes the rotated part of
            the head (2 * len <= head_dim), rotated as halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).
        rotary_gain: factor on cos and sin (1 unless the scaling rule has one).
        windows: sliding window per layer, or None for full attention.
        softcap, final_softcap: tanh caps on scores and logits, or None.
        tied: the head is the embedding.
        embed_gain: factor on embeddings.
        max_positions: maximum context length of the teacher in tokens.
        bos: beginning-of-text token, or None.
        eos: every end-of-text token; the first one is appended to whole texts.
    """

    layers: Layers
    width: Size
    vocab: Vocabulary
    heads: Size
    kv_heads: Size
    head_dim: Size
    mlp_width: Size
    mlp: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Annotated[float, Field(ge=0, le=1)] = 1e-5
    block: Literal["sequential", "parallel"] = "sequential"
    shared_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    scale: float = 0.125
    inverse_frequencies: Annotated[tuple[float, ...], Field(max_length=1 << 16)] = ()
    rotary_gain: float = 1.0
    windows: Annotated[tuple[Positions | None, ...], Field(max_length=2048)] = ()
    softcap: Positive | None = None
    final_softcap: Positive | None = None
    tied: bool = True
    embed_gain: float = 1.0
    max_positions: Positions = 2048
    bos: Token | None = None
    eos: Annotated[tuple[Token, ...], Field(max_length=4096)] = ()

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer, or None for full attention."""
        return self.windows[layer] if self.windows else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without loss."""
        data = asdict(self)
        data["inverse_frequencies"] = list(self.inverse_frequencies)
        data["windows"] = list(self.windows)
        data["eos"] = list(self.eos)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecoderFacts:
        """Invert :meth:`to_json`.

        Raises:
            UsageError: unknown keys, other types, or numbers that are out of bounds or contradict one another.
        """
        facts = typed(cls, data, "decoder facts")
        if facts.heads % facts.kv_heads:
            raise UsageError(f"decoder facts: {facts.heads} heads cannot share {facts.kv_heads} key heads")
        if 2 * len(facts.inverse_frequencies) > facts.head_dim:
            raise UsageError(
                f"decoder facts: {len(facts.inverse_frequencies)} rotary frequencies need a head of twice as many "
                f"values, it has {facts.head_dim}"
            )
        if len(facts.windows) not in (0, facts.layers):
            raise UsageError(f"decoder facts: {len(facts.windows)} windows for {facts.layers} layers")
        return facts

    def tiny(self) -> DecoderFacts:
        """Return the same architecture with two layers, a narrow MLP and a small vocabulary, for trial exports."""
        return replace(
            self,
            layers=min(self.layers, 2),
            vocab=min(self.vocab, 64),
            mlp_width=min(self.mlp_width, 64),
            windows=self.windows[: min(self.layers, 2)],
        )

    def taps(self) -> dict[str, Tap]:
        """Return the taps of a teacher with these facts, by name."""
        return teacher_taps(self)

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return multiply-adds per token in a sample of ``length`` tokens: every matrix once, half of the scores."""
        inner, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        mlp = (3 if self.mlp == "gated" else 2) * self.width * self.mlp_width
        attention = 2 * self.width * (inner + keys) + inner * int(sample.get("length", 0))
        return float(self.layers * (mlp + attention) + self.width * self.vocab)
