"""A real byte-level BPE tokenizer made in code, and a corpus of many small documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.text.text_corpora import SENTENCE, prose


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """About 300 tokens, ``<|end|>`` (id 0) is its end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([SENTENCE] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``documents`` text files of ``words`` words each."""

    def make(documents: int = 80, words: int = 60, name: str = "corpus") -> Path:
        root = tmp_path / name
        for i in range(documents):
            path = root / f"part{i % 3}" / f"{i:03d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(prose(i, words), encoding="utf-8")
        return root

    return make


@pytest.fixture
def open_text(tokenizer: Any) -> Callable[..., Any]:
    """Opens a stream of ``text:REF``."""
    from xarch import DataRequest
    from xarch_text.provider import TextData

    def make(
        ref: Any, split: str = "train", *, samples: int = 2, length: int = 32, seed: int = 0, **options: Any
    ) -> Any:
        provider = TextData()
        return provider.open(
            DataRequest(
                str(ref),
                provider.Options(**options),
                split=split,  # type: ignore[arg-type]
                samples=samples,
                sample={"length": length},
                processors={"teacher": tokenizer},
                seed=seed,
            )
        )

    return make
