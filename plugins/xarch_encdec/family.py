"""Family ``encdec``: models that read a source and write an answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xarch import Batch, BenchCase, Control, DataInfo, Options, Runner
from xarch_decoder.family import TokenFamily
from xarch_encdec.facts import EncDecFacts


class AnswerOptions(Options):
    """Options of ``xarch generate`` for an encoder-decoder."""

    tokens: int = Field(64, ge=1, description="most tokens of the answer; the end token stops earlier")


PROGRAM = Path(__file__).with_name("device") / "answer.py"
"""Copied beside the graphs."""


class EncDecFamily(TokenFamily):
    """Encoder-decoders over tokens: the encoder reads a prompt without its last token, the decoder begins with that
    token and writes the answer."""

    Facts = EncDecFacts
    unit = "token"
    tensors: ClassVar[Mapping[str, str]] = {
        "input_ids": "BS",
        "attention_mask": "BS",
        "decoder_input_ids": "BT",
        "answer_mask?": "BT",
        "encoder_future?": "B",
        "memory_last?": "B",
    }
    mask = "answer_mask"
    metric = "answers"
    places: ClassVar[Mapping[str, str]] = {
        "logits": "logits",
        "hidden": "decoder.{}.output",
        "labels": "batch:decoder_input_ids",
    }
    constants = ("head.weight",)
    GenerateOptions = AnswerOptions

    def accepts(self, facts: EncDecFacts, data: DataInfo) -> str | None:
        """Require pairs no longer than the model's maximum context."""
        longest = data.facts.get("length")
        if isinstance(longest, int) and longest > facts.max_positions:
            return f"pairs have {longest} tokens, but the model supports at most {facts.max_positions}"
        return None

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that answers a prompt; it needs both graphs and a tokenizer."""
        if not {"encoder", "decoder_1"} <= set(graphs) or not (student / "tokenizer.json").is_file():
            return None
        usage = '"def add(a, b):\\n    return a + b\\n"'
        return Runner(PROGRAM, usage, ("numpy", "onnxruntime", "tokenizers"), ("tokenizer.json",))

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """Yield time to first token and decoding speed at several prompt lengths."""
        from xarch_encdec.bench import answer_cases

        return answer_cases(graphs, folder)

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Return the layers, and predicted beside measured times."""
        from xarch_encdec.report import sections

        return sections(run)

    def controls(self, teacher: Any, student: Any) -> Mapping[str, Control]:
        """Return the teacher with layers left out, at the student's work and at its parameters."""
        from xarch_encdec.controls import cut_controls

        return cut_controls(teacher, student)

    def control_names(self, student: Any) -> Collection[str]:
        """Return the names of the teachers that are cut."""
        from xarch_encdec.controls import cuts

        facts = getattr(student, "teacher", None)
        return () if facts is None else tuple(cuts(facts, student))

    def generate(self, model: Any, processor: Any, prompt: str, options: AnswerOptions) -> Iterator[str]:
        """Yield the prompt and its answer, token by token."""
        from xarch_encdec.generation import answer_pieces

        return answer_pieces(model, processor, prompt, options.tokens)

    def example_batch(self, facts: EncDecFacts, samples: int = 2, seed: int = 0) -> Batch:
        """Return random pairs."""
        from xarch_encdec.testing import pair_batch

        return pair_batch(facts.vocab, samples, seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Make an encoder-decoder of a random Llama with two layers."""
        from xarch_encdec.testing import tiny_encdec

        return tiny_encdec(folder)

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return settings for a few hundred questions and answers, tokenized as bytes."""
        from xarch_encdec.testing import tiny_pairs

        return {
            "data.ref": tiny_pairs(folder / "pairs.jsonl"),
            "data.sample": {"source": 48, "target": 16},
            "data.options": {"tokenizer": "bytes"},
        }
