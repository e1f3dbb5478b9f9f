"""Sound in WAV files, resampled to the rate that a model hears.

Legend: N samples of sound.
"""

from __future__ import annotations

import io
import wave
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from xarch import UsageError, open_regular

MAX_BYTES = 1 << 28
"""A quarter of an hour of stereo at 48 kHz."""


def read_wav(file: Path, rate: int) -> np.ndarray:
    """Return a file's sound [N], float32 in -1 to 1, channels averaged.

    Raises:
        UsageError: there is no such file, it is too large, or not 16-bit PCM.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file", "expected a WAV file")
    if file.stat().st_size > MAX_BYTES:
        raise UsageError(f"{file} has {file.stat().st_size} bytes, but the limit is {MAX_BYTES}")
    with open_regular(file) as stream:
        return sound_of(stream.read(), rate, str(file))


def sound_of(content: bytes, rate: int, where: str) -> np.ndarray:
    """Return the sound of a WAV file's content; see :func:`read_wav`."""
    try:
        with wave.open(io.BytesIO(content)) as opened:
            channels, width, own = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
            # Programs that write to a pipe do not know the length in advance, so what there is counts.
            data: Any = opened.readframes(len(content))
    except (wave.Error, EOFError) as e:
        raise UsageError(f"{where} is no WAV file that can be read: {e}") from e
    if width != 2 or own <= 0:
        raise UsageError(f"{where} has {8 * width} bits a sample at {own} Hz, wanted 16-bit PCM")
    whole = len(data) // (2 * channels) * channels
    sound_N = np.frombuffer(data, "<i2", whole).reshape(-1, channels).mean(1) / 32768
    return resampled(sound_N, own, rate).astype(np.float32)


def resampled(sound_N: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Return sound at another rate."""
    if own == rate:
        return sound_N
    from scipy.signal import resample_poly

    common = gcd(own, rate)
    found: np.ndarray = resample_poly(sound_N, rate // common, own // common)
    return found
