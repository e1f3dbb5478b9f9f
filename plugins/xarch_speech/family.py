"""Family ``speech``: models that hear speech and write text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xarch import Batch, BenchCase, Control, DataInfo, Family, Options, Runner
from xarch_speech.facts import SpeechFacts

PROGRAM = Path(__file__).with_name("device") / "transcribe.py"
"""Copied beside the graphs."""


class TranscriptOptions(Options):
    """Options of ``xarch generate`` for a speech model; its prompt is a WAV file."""

    tokens: int = Field(128, ge=1, description="most tokens of the transcript; the end token stops earlier")


class SpeechFamily(Family):
    """Encoder-decoders that hear a log-mel spectrogram and write a transcript: as the family encdec, with another
    source."""

    Facts = SpeechFacts
    unit = "recording"
    tensors: ClassVar[Mapping[str, str]] = {
        "input_features": "BMF",
        "decoder_input_ids": "BT",
        "answer_mask?": "BT",
        "memory?": "BSD",
    }
    mask = "answer_mask"
    metric = "word-errors"
    places: ClassVar[Mapping[str, str]] = {
        "logits": "logits",
        "hidden": "decoder.{}.output",
        "labels": "batch:decoder_input_ids",
    }
    constants = ("head.weight",)
    hub_task = "automatic-speech-recognition"
    GenerateOptions = TranscriptOptions

    def accepts(self, facts: SpeechFacts, data: DataInfo) -> str | None:
        """Require features of the model's form and texts no longer than its positions."""
        info = data.tensors.get("input_features")
        shape = {} if info is None else dict(info.shape)
        wanted = {"M": facts.mels, "F": facts.frames}
        if any(shape.get(letter, size) != size for letter, size in wanted.items()):
            return f"features are {shape}, but the model hears {wanted}"
        longest = data.facts.get("length")
        if isinstance(longest, int) and longest > facts.max_positions:
            return f"texts have {longest} tokens, but the model supports at most {facts.max_positions}"
        return None

    def save_processor(self, processor: Any, folder: Path) -> None:
        """Write tokenizer and features."""
        processor.save_pretrained(str(folder))

    def load_processor(self, folder: Path) -> Any:
        """Load the processor of a student's folder, or return None."""
        from xarch import read_json
        from xarch_speech.processor import FEATURES, TOKENIZER, SpeechProcessor, stored_form

        if not (folder / TOKENIZER).is_file() or not (folder / FEATURES).is_file():
            return None
        return SpeechProcessor(folder, stored_form(read_json(folder / FEATURES)))

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that transcribes a WAV file; it needs both graphs and a tokenizer."""
        if not {"encoder", "decoder_1"} <= set(graphs) or not (student / "tokenizer.json").is_file():
            return None
        return Runner(PROGRAM, "speech.wav", ("numpy", "onnxruntime", "tokenizers"), ("tokenizer.json",))

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """Yield time to first token and decoding speed."""
        from xarch_speech.bench import speech_cases

        return speech_cases(graphs, folder)

    def controls(self, teacher: Any, student: Any) -> Mapping[str, Control]:
        """Return the teacher with the student's layers alone."""
        from xarch_speech.controls import cut_controls

        return cut_controls(teacher, student)

    def control_names(self, student: Any) -> Collection[str]:
        """Return the name of the cut teacher."""
        from xarch_speech.controls import CUT

        return (CUT,)

    def generate(self, model: Any, processor: Any, prompt: str, options: TranscriptOptions) -> Iterator[str]:
        """Yield the name of a WAV file, and its transcript."""
        from xarch_speech.generation import transcript_of_file

        yield f"{prompt}: "
        yield transcript_of_file(model, processor, prompt, options.tokens)

    def example_batch(self, facts: SpeechFacts, samples: int = 2, seed: int = 0) -> Batch:
        """Return noise, and random texts."""
        from xarch_speech.testing import noise_batch

        return noise_batch(facts, samples, seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Write a random Whisper with two layers, in transformers' form."""
        from xarch_speech.testing import tiny_whisper

        return tiny_whisper(folder / "teacher")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return settings for a few dozen short tones with names."""
        from xarch_speech.testing import tiny_tones

        return {"data.ref": tiny_tones(folder / "tones"), "data.sample": {"tokens": 24}}
