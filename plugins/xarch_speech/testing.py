"""Small models, recordings and batches generated in code: no downloads, built within a second."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path

from xarch import Batch
from xarch_speech.facts import SpeechFacts

WORDS = ("low", "middle", "high", "higher", "highest")


def noise_batch(facts: SpeechFacts, samples: int = 2, seed: int = 0) -> Batch:
    """Return noise, and random texts of 6 tokens."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    features_BMF = torch.randn(samples, facts.mels, facts.frames, generator=draw)
    ids_BT = torch.randint(0, facts.vocab, (samples, 6), generator=draw)
    return Batch({"input_features": features_BMF, "decoder_input_ids": ids_BT}, samples)


def tiny_whisper(folder: Path, *, layers: int = 2, seed: int = 0) -> str:
    """Write a random Whisper (width 16, 2 heads, 8 bands, bytes as tokens, 0.64 s); return ``whisper:FOLDER``."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    tokens = _tokenizer(folder)
    config = WhisperConfig(
        vocab_size=tokens,
        num_mel_bins=8,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        d_model=16,
        max_source_positions=32,
        max_target_positions=96,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=256,
        decoder_start_token_id=257,
        init_std=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    return f"whisper:{folder}"


def _tokenizer(folder: Path) -> int:
    """Write a tokenizer of bytes and Whisper's special tokens; return how many there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from xarch_speech.processor import END, START, TASK, TOKENIZER

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END, START, *TASK])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / TOKENIZER))
    return int(made.get_vocab_size())


def tiny_tones(folder: Path, *, recordings: int = 48, rate: int = 16000) -> str:
    """Write short tones and their names; return ``speech:FILE.jsonl``."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(recordings):
        word, seconds = WORDS[i % len(WORDS)], 0.2 + 0.01 * (i % 20)
        times_N = np.arange(round(seconds * rate)) / rate
        sound_N = 0.5 * np.sin(2 * math.pi * (200 * 1.7 ** (i % len(WORDS)) + 3 * i) * times_N)
        with wave.open(str(folder / f"{i}.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes((sound_N * 32767).astype("<i2").tobytes())
        lines.append(json.dumps({"audio": f"{i}.wav", "text": f"A {word} tone {i}."}))
    (folder / "tones.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"speech:{folder / 'tones.jsonl'}"
