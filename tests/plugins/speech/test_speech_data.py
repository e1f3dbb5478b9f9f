"""Recordings: files, sentences, espeak-ng where there is one, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xarch
from xarch import DataRequest, UsageError
from xarch_speech import espeak
from xarch_speech.metric import word_error_rate
from xarch_speech.provider import SpeechData, SpeechOptions, recordings
from xarch_speech.sentences import SENTENCE, SINGLE
from xarch_speech.testing import tiny_tones, tiny_whisper
from xarch_speech.wav import read_wav

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def tone(file: Path, *, rate: int = 22050, seconds: float = 1.0, hertz: float = 440.0, width: int = 2) -> Path:
    """A WAV file of one tone."""
    sound = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    with wave.open(str(file), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.repeat((sound * 32767).astype("<i2")[:, None], 2 if width == 2 else 1, 1).tobytes())
    return file


def test_sound_is_resampled(tmp_path: Path) -> None:
    sound = read_wav(tone(tmp_path / "a.wav"), 16000)
    assert sound.dtype == np.float32
    assert abs(len(sound) - 16000) <= 1
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(sound)) / 16000)
    assert np.abs(sound - wanted)[500:-500].max() < 1e-3


def test_what_is_no_sound_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UsageError, match="is no WAV file"):
        read_wav(tmp_path / "text.wav", 16000)
    with pytest.raises(UsageError, match="8 bits a sample"):
        read_wav(tone(tmp_path / "b.wav", width=1), 16000)
    with pytest.raises(UsageError, match="no such file"):
        read_wav(tmp_path / "c.wav", 16000)


def test_without_espeak_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "PROGRAM", "no-such-program")
    (tmp_path / "lines.txt").write_text("One line.\nAnother line.\n")
    with pytest.raises(UsageError, match=r"not installed\n.*apt-get install espeak-ng"):
        SpeechData().describe(DataRequest(str(tmp_path / "lines.txt"), SpeechOptions()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"audio": "../a.wav", "text": "x"}, "outside of the folder"),
        ({"audio": "/a.wav", "text": "x"}, "outside of the folder"),
        ({"audio": "a.wav"}, "no texts under"),
        ({"audio": "a.wav", "text": " "}, "no texts under"),
        ([], "no texts under"),
    ],
)
def test_records_are_checked(line: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=message):
        recordings(str(tmp_path / "r.jsonl"), SpeechOptions())
    with pytest.raises(UsageError, match="no such file"):
        recordings(str(tmp_path / "other.jsonl"), SpeechOptions())


def test_texts_lie_where_they_are_counted(tmp_path: Path) -> None:
    teacher = xarch.load_teacher(tiny_whisper(tmp_path / "whisper"))
    ref = tiny_tones(tmp_path / "tones").removeprefix("speech:")
    lines = Path(ref).read_text().splitlines()
    Path(ref).write_text("\n".join([*lines, *[json.dumps({"audio": "0.wav", "text": "Long. " * 30})] * 9]) + "\n")
    request = DataRequest(ref, SpeechOptions(), samples=46, facts=teacher.facts, sample={"tokens": 24})
    stream = SpeechData().open(DataRequest(**{**vars(request), "processors": {"teacher": teacher.processor()}}))
    batch = next(stream)
    assert stream.counters().get("skipped: text too long", 0) >= 1
    for row, mask in zip(batch["decoder_input_ids"].tolist(), batch["answer_mask"].tolist(), strict=True):
        first, count = mask.index(1.0), int(sum(mask))
        assert tuple(row[: first + 1]) == teacher.facts.start
        assert row[first + count] == teacher.facts.eos[0]
        assert teacher.processor().decode(row[first + 1 : first + count]).endswith(".")
        assert not any(row[first + count + 1 :])


def test_sentences_are_plain_words() -> None:
    text = "Return the number of items in the list. Use foo_bar to get the x of it. See the docs, which say what it is."
    found = [s for s in SENTENCE.findall(text) if not SINGLE.search(s)]
    assert found == ["Return the number of items in the list.", "See the docs, which say what it is."]


def test_word_errors_are_counted_without_case_and_punctuation() -> None:
    assert word_error_rate(["The quick fox."], ["the quick, fox"]) == 0
    assert word_error_rate(["The quick brown fox.", "It's one."], ["The brown box box", "it is one"]) == pytest.approx(
        3 / 7
    )
    with pytest.raises(UsageError, match="no held-out text has a word"):
        word_error_rate(["?!"], ["a"])


@needs_espeak
def test_espeak_speaks_alike_every_time_and_knows_its_voices() -> None:
    one, two = (espeak.spoken("Names refer to objects.", "en-us", 150, 16000) for _ in range(2))
    assert np.array_equal(one, two)
    assert 1 < len(one) / 16000 < 4
    assert one.std() > 0.01
    espeak.check_espeak(["en-us", "en-gb+f3"])
    for voice in ("no-such", "en-us+no-such"):
        with pytest.raises(UsageError, match="has no voice"):
            espeak.check_espeak([voice])
