"""Family ``decoder``: causal language models that read tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xarch import Batch, BenchCase, Control, DataInfo, Family, Options, Runner
from xarch_decoder.facts import DecoderFacts

PROGRAM = Path(__file__).with_name("device") / "generate.py"
"""What runs the exports on a device."""


class TextGeneration(Options):
    """Options of ``xarch generate`` for a decoder."""

    tokens: int = Field(64, ge=1, description="most tokens to continue by; the end token stops earlier")
    temperature: float = Field(0.0, ge=0, description="of the distribution that is drawn from; 0: the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens of this probability together")
    seed: int = Field(0, ge=0, description="of what is drawn")
    chat: bool = Field(False, description="put the prompt as a question, in the tokenizer's chat template")


class TokenFamily(Family):
    """Base of families whose processor is a tokenizer."""

    def save_processor(self, processor: Any, folder: Path) -> None:
        """Write the tokenizer's files."""
        processor.save_pretrained(str(folder))

    def load_processor(self, folder: Path) -> Any:
        """Load the tokenizer from a student's folder, or return None."""
        if not (folder / "tokenizer.json").is_file():
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


class DecoderFamily(TokenFamily):
    """Causal language models: tokens in, the distribution of the next token out."""

    Facts = DecoderFacts
    unit = "token"
    tensors: ClassVar[Mapping[str, str]] = {"input_ids": "BL", "segment_ids?": "BL", "loss_mask?": "BL"}
    mask = "loss_mask"
    metric = "perplexity"
    # Prompts of 1, 64 and 256 tokens through the default prefill graph, and three times 32 tokens.
    bench_calls = (1, 1, 4, 32, 32, 32, 32)
    hub_task = "text-generation"
    GenerateOptions = TextGeneration
    places: ClassVar[Mapping[str, str]] = {
        "logits": "logits",
        "hidden": "blocks.{}.output",
        "labels": "batch:input_ids",
    }
    constants = ("head.weight",)
    template = "xarch_decoder:template"

    def accepts(self, facts: DecoderFacts, data: DataInfo) -> str | None:
        """Require samples no longer than the model's maximum context."""
        longest = data.facts.get("length")
        if isinstance(longest, int) and longest > facts.max_positions:
            return f"samples have {longest} tokens, but the model supports at most {facts.max_positions}"
        return None

    def runner(self, graphs: Sequence[str], student: Path) -> Runner | None:
        """Return the program that continues a text; it needs ``decode_1`` and a tokenizer."""
        if "decode_1" not in graphs or not (student / "tokenizer.json").is_file():
            return None
        files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        usage = '"The capital of France is" --temperature 0'
        return Runner(PROGRAM, usage, ("numpy", "onnxruntime", "tokenizers"), files)

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """Yield time to first token and decoding speed at several prompt and context lengths."""
        from xarch_decoder.bench import language_cases

        return language_cases(graphs, folder)

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Return which layers were replaced, and the memory of a session."""
        from xarch_decoder.report import sections

        return sections(run)

    def controls(self, teacher: Any, student: Any) -> Mapping[str, Control]:
        """Return the teacher with a window and first tokens in three precisions, and with eviction by attention, at the
        student's state bytes in the layers whose state is constant."""
        from xarch_decoder.controls import decoder_controls
        from xarch_decoder.student import DecoderStudent

        return decoder_controls(teacher, student) if isinstance(student, DecoderStudent) else {}

    def control_names(self, student: Any) -> Collection[str]:
        """Return those that fit the student's state bytes."""
        from xarch_decoder.controls import control_layouts
        from xarch_decoder.student import DecoderStudent

        return list(control_layouts(student)) if isinstance(student, DecoderStudent) else ()

    def generate(self, model: Any, processor: Any, prompt: str, options: TextGeneration) -> Iterator[str]:
        """Yield the prompt and its continuation, or the answer to it, token by token."""
        from xarch_decoder.generation import text_pieces

        return text_pieces(model, processor, prompt, options)

    def example_batch(self, facts: DecoderFacts, samples: int = 2, seed: int = 0) -> Batch:
        """Return random tokens."""
        from xarch_decoder.testing import token_batch

        return token_batch(facts.vocab, samples, seed=seed)

    def tiny_teacher(self, folder: Path) -> str:
        """Write a random Llama with three layers."""
        from xarch_decoder.testing import tiny_llama

        return tiny_llama(folder / "teacher")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """Return settings for about 100 kB of synthetic English, tokenized as bytes."""
        from xarch_decoder.testing import tiny_text

        return {
            "data.ref": tiny_text(folder / "text.txt"),
            "data.sample": {"length": 48},
            "data.options": {"tokenizer": "bytes"},
        }
