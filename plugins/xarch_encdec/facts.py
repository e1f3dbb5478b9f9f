"""What an encoder-decoder made of a decoder's layers is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from xarch import Tap, UsageError, typed
from xarch_decoder.facts import DecoderFacts, Layers
from xarch_encdec.taps import model_taps

Cross = Literal["merged", "self_copy", "random"]
Norm = Literal["pre", "dual"]
Level = Annotated[int, Field(ge=0, le=2048)]


@dataclass(frozen=True)
class EncDecFacts:
    """Architecture of an encoder-decoder whose layers are those of a causal decoder.

    Attributes:
        layer: the decoder whose layers it has: widths, heads, norms, vocabulary, context. Its ``layers`` is the number
            of decoder layers; its ``windows`` are those of the decoder layers.
        encoder, decoder: number of layers of each.
        cross: how decoder layers read the source. "merged": one softmax over the keys of the source and of the tokens
            so far, with the layer's own projections; decoder positions go on where the source ends. "self_copy" and
            "random": an attention of its own after self-attention, without positions; they differ in how it starts.
        norm: "pre", or "dual": what attention and MLP give is normed too, before it is added.
        levels: decoder layer -> encoder layer whose input it may read in place of the encoder's last output (as many as
            there are encoder layers: that output before the norm).
        encoder_windows: sliding window of each encoder layer, to both sides; empty: none.
        twins: encoder layer -> decoder layer whose weights are also its own, None for weights of its own; empty: none.
        encoder_width: of the encoder's residual stream, which only a cross-attention of its own can read; None: the
            decoder's.
    """

    layer: DecoderFacts
    encoder: Layers
    decoder: Layers
    cross: Cross = "merged"
    norm: Norm = "pre"
    levels: Annotated[tuple[Level, ...], Field(max_length=2048)] = ()
    encoder_windows: Annotated[tuple[int | None, ...], Field(max_length=2048)] = ()
    twins: Annotated[tuple[Level | None, ...], Field(max_length=2048)] = ()
    encoder_width: Annotated[int | None, Field(ge=1, le=1 << 20)] = None

    @property
    def vocab(self) -> int:
        """Return the rows of the embedding."""
        return self.layer.vocab

    @property
    def width(self) -> int:
        """Return the width of the residual stream."""
        return self.layer.width

    @property
    def encoder_layer(self) -> DecoderFacts:
        """Return the decoder whose layers the encoder has."""
        return self.layer if self.encoder_width is None else replace(self.layer, width=self.encoder_width)

    @property
    def max_positions(self) -> int:
        """Return the most tokens of source and answer together."""
        return self.layer.max_positions

    @property
    def eos(self) -> tuple[int, ...]:
        """Return every token that ends an answer."""
        return self.layer.eos

    def encoder_window(self, layer: int) -> int | None:
        """Return the sliding window of an encoder layer, or None for full attention."""
        return self.encoder_windows[layer] if self.encoder_windows else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without loss."""
        lists = {key: list(getattr(self, key)) for key in ("levels", "encoder_windows", "twins")}
        return asdict(self) | {"layer": self.layer.to_json()} | lists

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EncDecFacts:
        """Invert :meth:`to_json`.

        Raises:
            UsageError: unknown keys, other types, or numbers that contradict one another.
        """
        facts = typed(cls, data, "encoder-decoder facts")
        DecoderFacts.from_json(facts.layer.to_json())
        for what, seen, wanted in (
            ("levels", len(facts.levels), facts.decoder),
            ("encoder_windows", len(facts.encoder_windows) or facts.encoder, facts.encoder),
            ("twins", len(facts.twins) or facts.encoder, facts.encoder),
            ("layer.layers", facts.layer.layers, facts.decoder),
        ):
            if seen != wanted:
                raise UsageError(f"encoder-decoder facts: {what} has {seen} for {wanted} layers")
        if max(facts.levels) > facts.encoder:
            raise UsageError(f"encoder-decoder facts: level {max(facts.levels)} of {facts.encoder} encoder layers")
        if facts.encoder_width not in (None, facts.width) and (facts.cross == "merged" or any(facts.twins)):
            raise UsageError("encoder-decoder facts: an encoder of another width with weights that the decoder has too")
        wrong = [j for j in facts.twins if j is not None and j >= facts.decoder]
        if wrong:
            raise UsageError(f"encoder-decoder facts: a twin in layer {wrong[0]} of {facts.decoder} decoder layers")
        return facts

    def tiny(self) -> EncDecFacts:
        """Return the same architecture with a layer of each, a narrow MLP and a small vocabulary."""
        shape = replace(self.layer.tiny(), layers=1, windows=self.layer.windows[:1])
        levels = tuple(min(level, 1) for level in self.levels[:1])
        twins = tuple(None if twin is None else 0 for twin in self.twins[:1])
        windows = self.encoder_windows[:1]
        return replace(self, layer=shape, encoder=1, decoder=1, levels=levels, encoder_windows=windows, twins=twins)

    def taps(self) -> dict[str, Tap]:
        """Return the taps of a model with these facts, by name."""
        return model_taps(self)

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return multiply-adds per token of a pair of ``source`` and ``target`` tokens: the encoder reads the source,
        decoder layers and head the target."""
        source, target = int(sample.get("source", 1)), int(sample.get("target", 1))
        d, inner, keys = self.layer.width, self.heads_width, self.layer.kv_heads * self.layer.head_dim
        mlp = (3 if self.layer.mlp == "gated" else 2) * d * self.layer.mlp_width
        own, cross = 2 * d * (inner + keys), 0 if self.cross == "merged" else 2 * d * inner
        read = self.encoder_layer.width
        encoder = self.encoder * ((mlp + own) * read / d + 2 * inner * source) + (d * read if read != d else 0)
        decoder = self.decoder * (mlp + own + cross + inner * (2 * source + target)) + d * self.vocab
        memory = self.decoder * 2 * read * keys
        return float((source * (encoder + memory) + target * decoder) / (source + target))

    @property
    def heads_width(self) -> int:
        """Return the width of all query heads together."""
        return self.layer.heads * self.layer.head_dim
