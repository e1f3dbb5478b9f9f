"""Speech of espeak-ng, a synthesiser by rules that is a package of every distribution.

Legend: N samples of sound.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Collection

import numpy as np

from xarch import UsageError
from xarch_speech.wav import sound_of

PROGRAM = "espeak-ng"
SECONDS = 60
"""Longest time for a sentence; it takes a few hundredths of a second."""


def check_espeak(voices: Collection[str] = ()) -> None:
    """Check that the program is there, and knows voices; it speaks with another where it does not.

    Raises:
        UsageError: it is not, with the command that installs it; or it does not know one.
    """
    if shutil.which(PROGRAM) is None:
        raise UsageError(
            f"speech is made by {PROGRAM}, which is not installed",
            "sudo apt-get install espeak-ng (Debian, Ubuntu), sudo dnf install espeak-ng (Fedora), or "
            "brew install espeak-ng (macOS)",
        )
    for voice in voices:
        name, plus, variant = voice.partition("+")
        if name not in _known("") or (plus and variant not in _known("=variant")):
            raise UsageError(f"{PROGRAM} has no voice {voice!r}", f"{PROGRAM} --voices=en lists voices of English")


@functools.cache
def _known(kind: str) -> frozenset[str]:
    """Return languages, names and files of voices, the last without their folder."""
    done = subprocess.run([PROGRAM, f"--voices{kind}"], capture_output=True, text=True, timeout=SECONDS, check=False)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return frozenset(word for row in rows if len(row) >= 5 for word in (row[1], row[3], row[4].rpartition("/")[2]))


def spoken(text: str, voice: str, speed: int, rate: int) -> np.ndarray:
    """Return a text as speech [N].

    Args:
        voice: as espeak-ng names it, e.g. "en-us+f3"; see :func:`check_espeak`.
        speed: words a minute.
        rate: samples a second.

    Raises:
        UsageError: it says nothing.
    """
    command = [PROGRAM, "-v", voice, "-s", str(speed), "--stdin", "--stdout"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SECONDS, check=False)
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(
            f"{PROGRAM} cannot speak with the voice {voice!r}: {said[-1] if said else f'exit {done.returncode}'}"
        )
    return sound_of(done.stdout, rate, PROGRAM)
