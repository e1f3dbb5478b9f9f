"""What turns sound into features, and text into tokens and back.

Legend: N samples of sound, M bands, F frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from xarch import UsageError, read_json, regular_text
from xarch_speech.facts import SoundForm

TOKENIZER = "tokenizer.json"
FEATURES = "preprocessor_config.json"
MAX_BYTES, MAX_VALUES = 32 << 20, 2_000_000

START, END = "<|startoftranscript|>", "<|endoftext|>"
TASK = ("<|en|>", "<|transcribe|>", "<|notimestamps|>")
"""What a transcript in English begins with after :data:`START`; models of English alone have only the last."""


class SpeechProcessor:
    """Feature extractor of transformers and tokenizer of a model.

    Args:
        folder: with the tokenizer.
        form: of what the model hears.
    """

    def __init__(self, folder: Path, form: SoundForm) -> None:
        from tokenizers import Tokenizer

        # Parsed within limits before a library does.
        read_json(folder / TOKENIZER, max_bytes=MAX_BYTES, max_values=MAX_VALUES)
        self.form, self._text = form, regular_text(folder / TOKENIZER)
        self.tokenizer = Tokenizer.from_str(self._text)
        self._extractor: Any = None

    def features(self, sound_N: np.ndarray) -> np.ndarray:
        """Return the log-mel spectrogram [M, F] of sound at the model's rate, float32; silence follows what is shorter
        than its frames, and what is longer is cut.
        """
        found: np.ndarray = self.extractor()(sound_N, sampling_rate=self.form.rate, return_tensors="np")[
            "input_features"
        ][0]
        return found.astype(np.float32, copy=False)

    def extractor(self) -> Any:
        """Return the feature extractor of transformers."""
        if self._extractor is None:
            from transformers import WhisperFeatureExtractor

            form = self.form
            self._extractor = WhisperFeatureExtractor(
                feature_size=form.mels, sampling_rate=form.rate, hop_length=form.hop, n_fft=form.fft
            )
            # Made of whole seconds, of which a model may hear a part.
            self._extractor.n_samples, self._extractor.nb_max_frames = form.frames * form.hop, form.frames
        return self._extractor

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a transcript, without those that begin and end it."""
        ids: list[int] = self.tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and features into a folder, for transformers too."""
        Path(folder, TOKENIZER).write_text(self._text, encoding="utf-8")
        self.extractor().save_pretrained(str(folder))


def stored_form(said: Any) -> SoundForm:
    """Return the form in a file of features, as transformers writes it.

    Raises:
        UsageError: a number is missing.
    """
    keys = ("feature_size", "nb_max_frames", "sampling_rate", "hop_length", "n_fft")
    given = [said.get(key) if isinstance(said, dict) else None for key in keys]
    found = [number for number in given if isinstance(number, int) and 0 < number < 1 << 24]
    if len(found) != len(keys):
        raise UsageError(f"{FEATURES} lacks one of {', '.join(keys)}", "write the student again")
    return SoundForm(*found)


def special_tokens(folder: Path, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (tokens that a transcript begins with, tokens that end it), from the tokenizer's own list.

    Raises:
        UsageError: there is no tokenizer, or it lacks them.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        raise UsageError(f"{where}: {folder} has no {TOKENIZER}", "expected a folder with model and tokenizer")
    said = read_json(file, max_bytes=MAX_BYTES, max_values=MAX_VALUES)
    added = said.get("added_tokens") if isinstance(said, dict) else None
    ids = {
        entry["content"]: entry["id"]
        for entry in added or ()
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("content"), str)
    }
    missing = [name for name in (START, END, TASK[-1]) if name not in ids]
    if missing:
        raise UsageError(f"{where}: the tokenizer has no {', '.join(missing)}", "expected the tokenizer of a Whisper")
    return (ids[START], *(ids[name] for name in TASK if name in ids)), (ids[END],)
