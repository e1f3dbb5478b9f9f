"""The family "decoder": causal language models that read tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from xarch import Batch, BenchCase, DataInfo, Family
from xarch_decoder.facts import DecoderFacts


class DecoderFamily(Family):
    """Tokens in, the distribution of the next token out. Everything of its own is in the rooms beside this file."""

    Facts = DecoderFacts
    unit = "token"
    tensors: ClassVar[Mapping[str, str]] = {"input_ids": "BL", "segment_ids?": "BL", "loss_mask?": "BL"}
    mask = "loss_mask"
    metric = "perplexity"
    places: ClassVar[Mapping[str, str]] = {
        "logits": "logits",
        "hidden": "blocks.{}.output",
        "labels": "batch:input_ids",
    }
    constants = ("head.weight",)
    template = "xarch_decoder:template"

    def accepts(self, facts: DecoderFacts, data: DataInfo) -> str | None:
        """Samples must not be longer than the context the model was made for."""
        longest = data.facts.get("length")
        if isinstance(longest, int) and longest > facts.max_positions:
            return f"samples of {longest} tokens, the model was made for at most {facts.max_positions}"
        return None

    def save_processor(self, processor: Any, folder: Path) -> None:
        """A tokenizer's own files."""
        processor.save_pretrained(str(folder))

    def load_processor(self, folder: Path) -> Any:
        """The tokenizer in a student's folder, or None."""
        if not (folder / "tokenizer.json").is_file():
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)

    def bench_cases(self, graphs: Sequence[str], folder: Path) -> Iterable[BenchCase]:
        """Time to the first token of prompts, and decoding after contexts, of several lengths."""
        from xarch_decoder.bench import language_cases

        return language_cases(graphs, folder)

    def report_sections(self, run: Any) -> Sequence[Any]:
        """Which layers were replaced, and the memory of a session."""
        from xarch_decoder.report import sections

        return sections(run)

    def generate(self, model: Any, processor: Any, prompt: str, options: Mapping[str, Any]) -> str:
        """``tokens`` further tokens (default 64), the most likely one each time, as text."""
        from xarch_decoder.generation import continue_text

        return continue_text(model, processor, prompt, int(options.get("tokens", 64)))

    def example_batch(self, facts: DecoderFacts, samples: int = 2, seed: int = 0) -> Batch:
        """Random tokens."""
        from xarch_decoder.testing import token_batch

        return token_batch(facts.vocab, samples, seed=seed)

    def tiny_teacher(self, folder: Path) -> str:
        """A random Llama of three layers."""
        from xarch_decoder.testing import tiny_llama

        return tiny_llama(folder / "teacher")

    def tiny_run(self, folder: Path) -> Mapping[str, Any]:
        """About 100 kB of made-up English, as bytes."""
        from xarch_decoder.testing import tiny_text

        return {
            "data.ref": tiny_text(folder / "text.txt"),
            "data.sample": {"length": 48},
            "data.options": {"tokenizer": "bytes"},
        }
