"""Data provider ``speech``: recordings and their texts, from files or spoken by espeak-ng.

Legend: N samples of sound, M bands, F frames, T decoder tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xarch import (
    Batch,
    BatchStream,
    DataInfo,
    DataProvider,
    DataRequest,
    IndexedData,
    IndexedStream,
    Options,
    SkipSample,
    TensorInfo,
    UsageError,
    parse_json,
    regular_text,
    sampled_digest,
    split_indices,
    validated,
)
from xarch_speech.espeak import check_espeak, spoken
from xarch_speech.processor import SpeechProcessor
from xarch_speech.sentences import NAME, python_sentences
from xarch_speech.wav import read_wav

MELS, FRAMES = 80, 3000
"""Features where no model says which: those of Whisper base."""


class SpeechOptions(Options):
    """Options of ``speech:`` data."""

    voices: list[str] = Field(
        default_factory=lambda: ["en-us", "en-gb", "en-us+f3", "en-gb+m3"],
        min_length=1,
        max_length=256,
        description="voices of espeak-ng, in turn",
    )
    speed: int = Field(150, ge=80, le=450, description="words a minute of espeak-ng")
    sentences: int = Field(2000, ge=4, le=1 << 24, description="most texts that are spoken")
    audio: str = Field("audio", min_length=1, description="key of the WAV file, relative to the file of records")
    text: str = Field("text", min_length=1, description="key of the text")
    validation: float = Field(0.05, ge=0, lt=1, description="share of recordings for decisions during training")
    calibration: float = Field(0.05, ge=0, lt=1, description="share of recordings for 8-bit ranges")
    heldout: float = Field(0.1, gt=0, lt=1, description="share of recordings for the final figures")


class SpeechSample(Options):
    """Form of one recording; its length is the model's."""

    tokens: int = Field(
        64, strict=True, ge=2, le=1 << 16, description="most tokens of a text; longer ones are left out"
    )


@dataclass(frozen=True)
class Recording:
    """A text, and the file of its sound or the voice that speaks it."""

    text: str
    voice: str = ""
    file: Path | None = None


class SpeechData(DataProvider):
    """Recordings of speech and their texts.

    References: ``speech:python-sentences`` (sentences of plain words of the running Python's standard library, spoken
    by espeak-ng), ``speech:FILE.txt`` (its lines, spoken) and ``speech:FILE.jsonl`` (records of WAV file and text).

    ``input_features`` [B, M, F] is the log-mel spectrogram by transformers' WhisperFeatureExtractor, of as many frames
    as the model hears; longer recordings are left out. ``decoder_input_ids``, ``answer_mask`` [B, T]: what every
    transcript begins with, the text and its end, padded to the longest of the batch; the mask counts the tokens whose
    next one is of the text, or its end. Units are recordings.
    """

    Options = SpeechOptions
    Sample = SpeechSample

    def describe(self, request: DataRequest) -> DataInfo:
        """See :meth:`xarch.DataProvider.describe`.

        Raises:
            UsageError: espeak-ng is needed and missing, or the file has no recordings.
        """
        sample = validated(SpeechSample, request.sample, "sample")
        found = recordings(request.ref, request.options)
        start = len(getattr(request.facts, "start", (0,) * 4))
        digest = hashlib.sha256(json.dumps([[r.text, r.voice] for r in found]).encode())
        digest.update(sampled_digest((str(r.file), r.file) for r in found if r.file is not None).encode())
        digest.update(str(request.options.speed).encode())
        return DataInfo(
            f"{len(found)} recordings of {request.ref}",
            digest.hexdigest(),
            "recording",
            {"recordings": len(found)},
            tensors={
                "input_features": TensorInfo(
                    "BMF",
                    {
                        "M": getattr(request.facts, "mels", MELS),
                        "F": getattr(request.facts, "frames", FRAMES),
                    },
                    dtype="float32",
                ),
                "decoder_input_ids": TensorInfo("BT"),
                "answer_mask": TensorInfo("BT", dtype="float32"),
            },
            facts={"length": sample.tokens + start + 1, "tokens": sample.tokens},
            processor_hint="name a teacher that has a tokenizer, e.g. zoo:whisper-base",
        )

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        return {"T": validated(SpeechSample, sample, "sample").tokens}

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: there are no recordings, or no processor.
        """
        options: SpeechOptions = request.options
        processor, facts = request.processors.get("teacher"), request.facts or getattr(request.teacher, "facts", None)
        if not isinstance(processor, SpeechProcessor) or facts is None:
            raise UsageError("recordings need features and tokens of a speech model", "--teacher zoo:whisper-base")
        found = recordings(request.ref, options)
        indices = split_indices(
            len(found),
            request.split,
            validation=options.validation,
            calibration=options.calibration,
            heldout=options.heldout,
        )
        tokens = validated(SpeechSample, request.sample, "sample").tokens
        data = Recordings(found, options.speed, processor, facts.start, facts.eos, tokens)
        return _Trimmed(data, request, indices=indices)


def recordings(ref: str, options: SpeechOptions) -> list[Recording]:
    """Return the recordings of a reference, in order.

    Raises:
        UsageError: there are none, a record lacks a key or names a file outside, or espeak-ng is missing.
    """
    file = Path(ref).expanduser()
    if file.suffix == ".jsonl" and file.is_file():
        found = [_recorded(line, number, file, options) for number, line in enumerate(_lines(file), 1)]
    elif ref == NAME or (file.suffix == ".txt" and file.is_file()):
        check_espeak(options.voices)
        texts = list(dict.fromkeys(python_sentences() if ref == NAME else _lines(file)))[: options.sentences]
        found = [Recording(text, options.voices[i % len(options.voices)]) for i, text in enumerate(texts)]
    else:
        raise UsageError(f"speech:{ref}: no such file", f"expected speech:{NAME}, speech:FILE.txt or speech:FILE.jsonl")
    if not found:
        raise UsageError(f"speech:{ref} has no recordings")
    return found


def _lines(file: Path) -> list[str]:
    return [line for line in (line.strip() for line in regular_text(file).splitlines()) if line]


def _recorded(line: str, number: int, file: Path, options: SpeechOptions) -> Recording:
    where = f"{file}:{number}"
    said = parse_json(line, where)
    audio, text = (said.get(key) if isinstance(said, dict) else None for key in (options.audio, options.text))
    if not isinstance(audio, str) or not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where}: no texts under {options.audio!r} and {options.text!r}", "see data.options")
    path = Path(audio)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{where}: {audio!r} is outside of the folder of {file.name}")
    return Recording(text, file=file.parent / path)


class Recordings(IndexedData):
    """Recordings by index, as features and tokens of one length.

    Args:
        found: the recordings.
        speed: words a minute of those that are spoken.
        processor: of the model.
        start, eos: tokens around every text.
        tokens: most tokens of a text.
    """

    def __init__(
        self,
        found: Sequence[Recording],
        speed: int,
        processor: SpeechProcessor,
        start: Sequence[int],
        eos: Sequence[int],
        tokens: int,
    ) -> None:
        self.found, self.speed, self.processor = found, speed, processor
        self.start, self.eos, self.tokens = tuple(start), tuple(eos[:1]), tokens

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        recording, form = self.found[index], self.processor.form
        ids = [*self.processor.encode(recording.text), *self.eos]
        if len(ids) > self.tokens + len(self.eos):
            raise SkipSample("text too long")
        sound_N = self._sound(recording)
        if len(sound_N) > form.frames * form.hop:
            raise SkipSample("recording too long")
        row_T, mask_T = torch.zeros(2, len(self.start) + self.tokens + 1, dtype=torch.int64)
        row_T[: len(self.start) + len(ids)] = torch.tensor([*self.start, *ids])
        mask_T[len(self.start) - 1 : len(self.start) + len(ids) - 1] = 1
        features_MF = torch.from_numpy(self.processor.features(sound_N))
        return {"input_features": features_MF, "decoder_input_ids": row_T, "answer_mask": mask_T.float()}

    def _sound(self, recording: Recording) -> np.ndarray:
        rate = self.processor.form.rate
        if recording.file is None:
            return spoken(recording.text, recording.voice, self.speed, rate)
        return read_wav(recording.file, rate)


class _Trimmed(IndexedStream):
    """Batches without the pads that all rows have."""

    def __next__(self) -> Batch:
        batch = super().__next__()
        # The end of the text is read too, so that its place counts in caches of all rows alike.
        longest = int(batch["answer_mask"].sum(1).max()) + len(self.data.start)  # type: ignore[attr-defined]
        return batch.replace(**{key: batch[key][:, :longest] for key in ("decoder_input_ids", "answer_mask")})
