"""Benchmarks of an exported speech model: time to the first token of a transcript, and tokens per second after it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xarch import BenchCase, Call
from xarch_encdec.driving import DECODER, ENCODER
from xarch_speech.driving import SpeechGraphs

DECODED = 32
"""Tokens of a timed transcript."""


def first_token(driven: SpeechGraphs, call: Call, features_1MF: np.ndarray) -> None:
    """Hear a recording and give the first token of its transcript."""
    driven.written(call, features_1MF, 1)


def speech_cases(graphs: Sequence[str], folder: Path) -> Iterator[BenchCase]:
    """Yield time to first token and decoding.

    Args:
        graphs: names of the exported graphs in ``folder``.
    """
    if not {ENCODER, DECODER} <= set(graphs):
        return
    driven = SpeechGraphs.of(folder)
    sound = driven.sound
    features_1MF = np.zeros((1, sound["mels"], sound["frames"]), np.float32)
    seconds = sound["frames"] * sound["hop"] / sound["rate"]
    drive = functools.partial(first_token, driven, features_1MF=features_1MF)
    yield BenchCase(f"first token of {seconds:g} s", "token", 1, (ENCODER, DECODER), drive)
    fixed = driven.memory()
    state = {"state_bytes": float(sum(value.nbytes for value in fixed.values()))}
    more = functools.partial(driven.write, fixed=fixed, start_B=np.array(driven.start[:1]), tokens=DECODED)
    yield BenchCase("transcribe", "token", DECODED, (DECODER,), more, state)
