"""Small teachers, texts and batches generated in code: no downloads, built within a second."""

from __future__ import annotations

from pathlib import Path

from xarch import Batch

VOCAB = 260


def tiny_llama(folder: Path, *, layers: int = 3, seed: int = 0) -> str:
    """Write a random Llama (width 32, 4 heads, 2 key heads, byte vocabulary); return its reference ``hf:FOLDER``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=257,
        eos_token_id=258,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return f"hf:{folder}"


def tiny_text(file: Path, *, sentences: int = 1200) -> str:
    """Write about 100 kB of synthetic English and return its reference ``text:FILE``."""
    subjects = ("the engine", "a student", "one teacher", "this layer", "the old clock", "her map")
    verbs = ("reads", "copies", "forgets", "measures", "turns", "keeps")
    objects = ("the river", "every number", "a long letter", "its shadow", "the last page", "two keys")
    parts = []
    for i in range(sentences):
        line = f"{subjects[i % 6]} {verbs[i * 7 % 11 % 6]} {objects[i * 5 % 13 % 6]}, and then it waits {i % 17} days."
        parts.append(line.capitalize())
        if i % 9 == 8:
            parts.append("\n\n")
    file.write_text(" ".join(parts), encoding="utf-8")
    return f"text:{file}"


def token_batch(vocab: int, samples: int = 2, length: int = 24, seed: int = 0) -> Batch:
    """Return random tokens, ``input_ids`` [samples, length]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(0, vocab, (samples, length), generator=generator)
    return Batch({"input_ids": ids_BL}, samples * length)
