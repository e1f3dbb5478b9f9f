"""Reproducible text."""

from __future__ import annotations

import random

SENTENCE = "the state of a model is read by every layer and written once per token in order to be kept small"
WORDS = SENTENCE.split()


def prose(seed: int, words: int) -> str:
    """Reproducible text with lines of a dozen words."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choice(WORDS) for _ in range(12)) for _ in range(max(1, words // 12))]
    return f"document {seed}\n" + "\n".join(lines) + "\n"
