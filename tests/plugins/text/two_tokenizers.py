"""Two tokenizers of different kinds, trained on a sentence."""

from __future__ import annotations

from typing import Any

TEXT = "the naïve fox has seven apples and the other fox has none; naïve foxes count apples "


def byte_level(merges: int = 40) -> Any:
    """A tokenizer of bytes and their merges, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges, initial_alphabet=letters, special_tokens=["<eos>"], show_progress=False
    )
    made.train_from_iterator([TEXT * 4, "0 1 2 3 4 5 6 7 8 9 01 23 45 67 89"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def pieces() -> Any:
    """A unigram tokenizer with metaspaces, as T5's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([TEXT * 4, "0 1 2 3 4 5 6 7 8 9 01 23 45 67 89"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
