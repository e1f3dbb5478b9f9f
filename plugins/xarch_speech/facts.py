"""What an encoder-decoder that hears speech and writes text is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from xarch import Size, Tap, UsageError, typed
from xarch_speech.taps import model_taps

Token = Annotated[int, Field(ge=0, lt=1 << 24)]

STRIDE = 2
"""Frames of features for a position of the encoder, the stride of its second convolution."""


@dataclass(frozen=True)
class SoundForm:
    """Form of what a model hears.

    Attributes:
        mels: bands of the log-mel spectrogram.
        frames: frames of a recording.
        rate: samples a second of the sound.
        hop: samples from a frame to the next.
        fft: samples of a frame.
    """

    mels: int
    frames: int
    rate: int
    hop: int
    fft: int


@dataclass(frozen=True)
class SpeechFacts:
    """Architecture of Whisper (arXiv 2212.04356).

    Attributes:
        mels: bands of the log-mel spectrogram that it hears.
        frames: frames that it hears at once; shorter recordings are padded with silence.
        width: of the residual streams.
        heads: attention heads of every layer.
        encoder, decoder: number of layers of each.
        encoder_mlp, decoder_mlp: inner width of their MLPs.
        vocab: tokens.
        max_positions: most tokens that the decoder reads, with those that every transcript begins with.
        start: tokens that every transcript begins with (start, language, task, no timestamps).
        eos: tokens that end a transcript.
        rate: samples a second of the sound.
        hop: samples from a frame to the next.
        fft: samples of a frame.
    """

    mels: Size
    frames: Size
    width: Size
    heads: Size
    encoder: Size
    decoder: Size
    encoder_mlp: Size
    decoder_mlp: Size
    vocab: Size
    max_positions: Size
    start: Annotated[tuple[Token, ...], Field(min_length=1, max_length=64)]
    eos: Annotated[tuple[Token, ...], Field(max_length=64)]
    rate: Size = 16000
    hop: Size = 160
    fft: Size = 400

    @property
    def head_dim(self) -> int:
        """Return the width of a head."""
        return self.width // self.heads

    @property
    def positions(self) -> int:
        """Return the encoder's positions."""
        return self.frames // STRIDE

    @property
    def form(self) -> SoundForm:
        """Return the form of what it hears."""
        return SoundForm(self.mels, self.frames, self.rate, self.hop, self.fft)

    @property
    def seconds(self) -> float:
        """Return the longest recording."""
        return self.frames * self.hop / self.rate

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without loss."""
        return asdict(self) | {"start": list(self.start), "eos": list(self.eos)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpeechFacts:
        """Invert :meth:`to_json`.

        Raises:
            UsageError: unknown keys, other types, or numbers that contradict one another.
        """
        facts = typed(cls, data, "facts of a speech model")
        if facts.width % facts.heads:
            raise UsageError(f"facts of a speech model: width {facts.width} is no multiple of {facts.heads} heads")
        if facts.frames % STRIDE:
            raise UsageError(f"facts of a speech model: frames is {facts.frames}, not an even number")
        if max(*facts.start, *facts.eos, 0) >= facts.vocab or len(facts.start) >= facts.max_positions:
            raise UsageError(f"facts of a speech model: start {facts.start} does not fit vocabulary and positions")
        return facts

    def tiny(self) -> SpeechFacts:
        """Return the same architecture with a layer of each, narrow MLPs and a small vocabulary."""
        vocab = min(self.vocab, 64)
        return replace(
            self,
            frames=min(self.frames, 64),
            encoder=1,
            decoder=1,
            encoder_mlp=min(self.encoder_mlp, 64),
            decoder_mlp=min(self.decoder_mlp, 64),
            vocab=vocab,
            start=tuple(token % vocab for token in self.start),
            eos=tuple(token % vocab for token in self.eos),
        )

    def taps(self) -> dict[str, Tap]:
        """Return the taps of a model with these facts, by name."""
        return model_taps(self)

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return multiply-adds per recording, written as ``tokens`` tokens: the encoder reads all of its positions."""
        tokens, d, s = int(sample.get("tokens", 1)), self.width, self.positions
        heard = 3 * d * (self.frames * self.mels + s * d)
        encoder = self.encoder * s * (4 * d * d + 2 * d * self.encoder_mlp + 2 * d * s)
        memory = self.decoder * s * 2 * d * d
        step = self.decoder * (6 * d * d + 2 * d * self.decoder_mlp + d * (2 * s + tokens)) + d * self.vocab
        return float(heard + encoder + memory + tokens * step)
